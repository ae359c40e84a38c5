"""Which placement of a model this machine takes."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from itertools import product

from edgevlm.devices.outlook import Sizes, ThisMachine
from edgevlm.devices.placement import choose_placement
from edgevlm.devices.plan import ENOUGH_CONTEXT, fits
from edgevlm.devices.target import memory_allowed
from edgevlm.engine.placement import Placement
from edgevlm.models.shapes import sizes_of
from edgevlm.models.store import Store
from edgevlm.settings import Settings


def choose(name: str, runtime: str, settings: Settings, store: Store) -> tuple[Placement, Sizes]:
    """The placement that this machine takes of a model, and what is known of its sizes.

    What can run and fits comes first, of that what is fetched already, and then what answers
    soonest: nothing is fetched for a little speed. `runtime` is `auto`, a runtime or a
    placement. Raises what `Store.placements` and `choose_placement` raise; that the chosen
    one fits is for `check_fit` to say.
    """
    sizes = sizes_of(name, store)
    machine = ThisMachine(sizes, settings.home, settings.threads)

    def fitting(among: Collection[Placement], context: int | None, placement: Placement) -> bool:
        room = memory_allowed(machine.machine, placement.language)
        return placement in among and fits(sizes, placement, context, room)

    offers, here = store.placements(name), store.here(name)
    asked = settings.context_length
    # A shorter context, where none was asked for, is less of a loss than another download.
    for among, context in product((here, offers), (asked, asked or ENOUGH_CONTEXT)):
        enough = partial(fitting, among, context)
        placement = choose_placement(offers, runtime, machine, fits=enough, here=here)
        if enough(placement):
            break
    return placement, sizes
