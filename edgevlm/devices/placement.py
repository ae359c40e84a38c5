"""Where the parts of a model run on this machine, and why not elsewhere."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.engine.placement import Placement
from edgevlm.errors import EdgeVLMError, NotSupported, UsageError
from edgevlm.runtimes import get_runtime, installed_runtimes

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Option:
    """A placement that a model's files allow; `refused` says in one line why not here."""

    placement: Placement
    refused: str | None = None


def choose_placement(offers: Sequence[Placement], wanted: str = AUTO) -> Placement:
    """Return the best placement that can run here among those a model's files allow.

    `wanted` is `auto`, the name of a runtime, which the language model then has, or a
    placement as it is spelled. What is asked for by name and can run here is returned even
    where no files offer it: the store says what is missing. Raises UnknownRuntime, and
    NotSupported with the reasons where nothing can run here.
    """
    asked = _asked(wanted)
    options = rank(offers, wanted)
    for option in options:
        if option.refused is None:
            return option.placement
    if asked is not None and not options:
        reason = refusal(asked)
        if reason is None:
            return asked
        options = [Option(asked, reason)]
    if asked is not None:
        _, reason = options[0].placement, options[0].refused
        raise NotSupported(f"Runtime {wanted} can't run here: {reason}.", hint="Try `auto`.")
    reasons = "; ".join(f"{option.placement}: {option.refused}" for option in options)
    raise NotSupported(
        f"No runtime can run here ({reasons or 'none is installed'}).",
        hint="`edgevlm doctor` says what each one wants.",
    )


def rank(offers: Sequence[Placement], wanted: str = AUTO) -> list[Option]:
    """The placements that fit what is wanted, the best first, each with its refusal if any."""
    asked = _asked(wanted)
    if asked is not None:
        whole = "+" in wanted
        offers = [p for p in offers if p == asked or (not whole and p.language == asked.language)]
    return [Option(p, refusal(p)) for p in sorted(offers, key=_preference)]


def refusal(placement: Placement) -> str | None:
    """Why a placement can't run on this machine, in one line; None where it can."""
    for name in dict.fromkeys((placement.language, placement.vision)):
        try:
            reason = get_runtime(name).unavailable()
        except EdgeVLMError as error:
            reason = error.message.rstrip(".")
        if reason:
            return reason
    return None


def _asked(wanted: str) -> Placement | None:
    if wanted == AUTO:
        return None
    try:
        asked = Placement.parse(wanted)
    except ValueError as error:
        raise UsageError(str(error)[:1].upper() + str(error)[1:] + ".") from error
    for name in (asked.vision, asked.language):
        if name not in installed_runtimes():
            get_runtime(name)  # raises UnknownRuntime
    return asked


def _preference(placement: Placement) -> tuple[int, int, str]:
    """One runtime for both parts before two, and the device's own first."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    order = ("mlx", "llamacpp", "onnx", "coreml") if apple else ("onnx", "llamacpp", "mlx")
    ranks = [order.index(r) if r in order else len(order) for r in (placement.language,)]
    return (ranks[0], int(placement.vision != placement.language), str(placement))
