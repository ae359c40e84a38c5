"""Which placement of a model this machine takes."""

from __future__ import annotations

from edgevlm.devices.outlook import Sizes, ThisMachine
from edgevlm.devices.placement import choose_placement
from edgevlm.devices.plan import fits
from edgevlm.devices.target import memory_left
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

    def fitting(placement: Placement) -> bool:
        room = memory_left(machine.machine, placement.language)
        return fits(sizes, placement, settings.context_length, room)

    placement = choose_placement(
        store.placements(name), runtime, machine, fits=fitting, here=store.here(name)
    )
    return placement, sizes
