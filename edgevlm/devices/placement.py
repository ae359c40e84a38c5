"""Where the parts of a model run on this machine, and why not elsewhere."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgevlm.engine.placement import Placement
from edgevlm.errors import EdgeVLMError, NotSupported, UsageError
from edgevlm.runtimes import get_runtime, installed_runtimes

AUTO = "auto"
_WORTH_TWO = 1.1


class Outlook(Protocol):
    """What is foreseen of a model's placements on a device, this one or another."""

    @property
    def apple(self) -> bool:
        """Whether the device has Apple's own chip, and with it MLX's graphics processor."""

    def seconds(self, placement: Placement) -> float | None:
        """How long a usual answer would take, None where that can't be foreseen."""

    def refusal(self, placement: Placement) -> str | None:
        """Why the device can't run it, in one line; None where it can."""


@dataclass(frozen=True, slots=True)
class Option:
    """A placement that a model's files allow; `refused` says in one line why not here."""

    placement: Placement
    refused: str | None = None


def choose_placement(
    offers: Sequence[Placement],
    wanted: str = AUTO,
    outlook: Outlook | None = None,
    *,
    fits: Callable[[Placement], bool] = lambda placement: True,
    here: Collection[Placement] = (),
) -> Placement:
    """Return the best placement that can run here among those a model's files allow.

    The best is what answers soonest as `outlook` foresees it, and without one the device's
    own runtime; before that comes what `fits` in memory, and what is `here` already.
    `wanted` is `auto`, the name of a runtime, which the language model then
    has, or a placement as it is spelled. What is asked for by name and can run here is
    returned even where no files offer it: the store says what is missing. Raises
    UnknownRuntime, and NotSupported with the reasons where nothing can run here.
    """
    asked = _asked(wanted)
    options = rank(offers, wanted, outlook)
    able = [option.placement for option in options if option.refused is None]
    able.sort(key=lambda placement: placement not in here)
    if able:
        return next(filter(fits, able), able[0])
    if asked is not None and not options:
        reason = refusal(asked)
        if reason is None:
            return asked
        options = [Option(asked, reason)]
    if asked is not None:
        why = options[0].refused
        raise NotSupported(f"Runtime {wanted} can't run here: {why}.", hint="Try `auto`.")
    reasons = "; ".join(f"{option.placement}: {option.refused}" for option in options)
    raise NotSupported(
        f"No runtime can run here ({reasons or 'none is installed'}).",
        hint="`edgevlm doctor` says what each one wants.",
    )


def rank(
    offers: Sequence[Placement], wanted: str = AUTO, outlook: Outlook | None = None
) -> list[Option]:
    """The placements that fit what is wanted, the best first, each with its refusal if any."""
    asked = _asked(wanted)
    if asked is not None:
        offers = _fitting(offers, asked, spelled="+" in wanted)
    refused = outlook.refusal if outlook is not None else refusal
    apple = outlook.apple if outlook is not None else _on_apple()
    options = [Option(p, refused(p)) for p in sorted(offers, key=lambda p: _preference(p, apple))]
    able = [option.placement for option in options if option.refused is None]
    # On Apple's chips every speed is an estimate, and those of MLX's rivals no better.
    if outlook is None or apple or len(able) < 2:
        return options
    seconds = {placement: outlook.seconds(placement) for placement in able}
    if None in seconds.values():
        return options  # what can't be foreseen can't be compared
    return sorted(options, key=lambda o: _foreseen(o.placement, seconds.get(o.placement)))


def _fitting(offers: Sequence[Placement], asked: Placement, *, spelled: bool) -> list[Placement]:
    """Of the offers what was asked for. A runtime by its name alone takes both parts where it
    can, and else the language model."""
    if asked in offers or spelled:
        return [p for p in offers if p == asked]
    return [p for p in offers if p.language == asked.language]


def _foreseen(placement: Placement, seconds: float | None) -> float:
    """Two runtimes instead of one must be worth their memory and their loading."""
    if seconds is None:
        return float("inf")
    return seconds * (_WORTH_TWO if placement.vision != placement.language else 1.0)


def refusal(placement: Placement) -> str | None:
    """Why a placement can't run on this machine, in one line; None where it can."""
    reasons = map(unavailable, dict.fromkeys((placement.language, placement.vision)))
    return next((reason for reason in reasons if reason), None)


def unavailable(name: str) -> str | None:
    """Why a runtime can't run on this machine, in one line; None where it can."""
    try:
        return get_runtime(name).unavailable()
    except EdgeVLMError as error:
        return error.message.rstrip(".")


def _asked(wanted: str) -> Placement | None:
    if wanted == AUTO:
        return None
    asked = parse_placement(wanted)
    for name in (asked.vision, asked.language):
        if name not in installed_runtimes():
            get_runtime(name)  # raises UnknownRuntime
    return asked


def parse_placement(text: str) -> Placement:
    """Raises UsageError for what is no placement."""
    try:
        return Placement.parse(text)
    except ValueError as error:
        raise UsageError(str(error)[:1].upper() + str(error)[1:] + ".") from error


def _preference(placement: Placement, apple: bool) -> tuple[int, int, str]:
    """The device's own runtime first, and one for both parts before two; on Apple's chips the
    Neural Engine sees where a model has a package for it."""
    order = ("mlx", "llamacpp", "onnx", "coreml") if apple else ("onnx", "llamacpp", "mlx")
    language = order.index(placement.language) if placement.language in order else len(order)
    vision = int(placement.vision != placement.language)
    if apple and placement == Placement("coreml", "mlx"):
        vision = -1
    return (language, vision, str(placement))


def _on_apple() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"
