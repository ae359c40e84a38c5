"""Where a model would run on a device, whether it fits, how fast, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edgevlm.devices.outlook import OtherDevice, Sizes, ThisMachine
from edgevlm.devices.placement import AUTO, Option, rank
from edgevlm.devices.predict import (
    Memory,
    Timing,
    largest_context,
    predict_memory,
    predict_timing,
)
from edgevlm.devices.shape import Workload
from edgevlm.devices.target import Target
from edgevlm.engine.placement import Placement
from edgevlm.errors import DoesNotFit

# Tokens: a picture in full detail with some questions about it, and the least of any use.
ENOUGH_CONTEXT, _USEFUL_CONTEXT = 2048, 512
_CONTEXT_STEP = 256


@dataclass(frozen=True, slots=True)
class Candidate:
    """One placement. `refused` says in one line why it isn't chosen, None of the chosen one;
    `memory` and `timing` are None where the model's sizes aren't known."""

    placement: Placement
    refused: str | None
    memory: Memory | None = None
    timing: Timing | None = None
    fits: bool | None = None

    def to_dict(self) -> dict[str, object]:
        return {
            "placement": str(self.placement),
            "refused": self.refused,
            "fits": self.fits,
            "memory": self.memory.to_dict() if self.memory else None,
            "prediction": self.timing.to_dict() if self.timing else None,
        }


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """`chosen` is None where nothing can run or nothing fits; `too_large` where a placement
    could run but for its memory. Memory in bytes."""

    model: str
    device: str
    memory: int
    work: Workload
    chosen: Candidate | None
    rejected: tuple[Candidate, ...]
    too_large: bool

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "device": self.device,
            "memory_for_us": self.memory,
            "context": self.work.context,
            "prompt_tokens": self.work.prompt,
            "image_tiles": self.work.tiles,
            "chosen": self.chosen.to_dict() if self.chosen else None,
            "rejected": [candidate.to_dict() for candidate in self.rejected],
        }


def make_plan(
    outlook: ThisMachine | OtherDevice,
    offers: Sequence[Placement],
    work: Workload,
    wanted: str = AUTO,
    unpublished: Sequence[Placement] = (),
    here: Collection[Placement] = (),
) -> DevicePlan:
    """Weigh every placement among `offers`, the best first; `unpublished` are those that the
    device could run and for which the model has no files, `here` those that are fetched
    already. Raises what `rank` does."""
    sizes, target = outlook.sizes, outlook.target
    weighed = [_weigh(each, sizes, target, work) for each in rank(offers, wanted, outlook)]
    able = [each for each in weighed if each.refused is None and each.fits is not False]
    chosen = min(able, key=lambda each: each.placement not in here, default=None)
    too_large = any(each.refused is None and each.fits is False for each in weighed)
    rejected = [_reason(each, chosen, target, here) for each in weighed if each is not chosen]
    reason = "no files are published for it (`edgevlm model convert` makes some)"
    missing = [_weigh(Option(each, reason), sizes, target, work) for each in unpublished]
    memory = target.memory_for(chosen.placement.language) if chosen else target.memory
    if chosen is not None:
        chosen = replace(chosen, refused=None)
    return DevicePlan(
        sizes.name, target.title, memory, work, chosen, (*rejected, *missing), too_large
    )


def shorter_context(outlook: ThisMachine | OtherDevice, offers: Sequence[Placement]) -> int:
    """The longest context in tokens with which one of `offers` that can run would fit, 0 where
    that isn't enough to talk."""
    sizes, target = outlook.sizes, outlook.target
    longest = [
        longest_context(sizes, each, target.memory_for(each.language))
        for each in offers
        if outlook.refusal(each) is None
    ]
    return max((tokens for tokens in longest if tokens >= ENOUGH_CONTEXT), default=0)


def require_fit(
    sizes: Sizes,
    placement: Placement,
    context: int | None,
    memory: int,
    others: Callable[[], Mapping[str, int]],
) -> int | None:
    """The context to load with, in tokens: `context` as asked for, or without one (None: the
    model's own) the longest that fits in `memory` bytes, if that is enough to talk.

    Raises DoesNotFit, with the largest of `others` (name: bytes wanted) that would. Of a model
    of unknown sizes nothing is said.
    """
    weights, tokens = sizes.weights(placement), _tokens(sizes, context)
    if weights is None or fits(sizes, placement, context, memory):
        return context
    wanted = predict_memory(sizes.shape, weights, placement, tokens).total
    room = longest_context(sizes, placement, memory)
    if context is None and room >= ENOUGH_CONTEXT:
        return room
    raise DoesNotFit(
        f"{sizes.name} on {placement} wants {_gb(wanted)} of memory with a context of"
        f" {tokens} tokens, and this device leaves {_gb(memory)}.",
        hint=_way_out(room, largest_that_fits(others(), memory)),
    )


def fits(sizes: Sizes, placement: Placement, context: int | None, memory: int) -> bool:
    """Whether a model wants no more than `memory` bytes; one of unknown sizes counts as none."""
    weights = sizes.weights(placement)
    if weights is None:
        return True
    return predict_memory(sizes.shape, weights, placement, _tokens(sizes, context)).total <= memory


def longest_context(sizes: Sizes, placement: Placement, memory: int) -> int:
    """Tokens, in steps, for which `memory` bytes are enough; 0 where nothing is known."""
    weights = sizes.weights(placement)
    if weights is None or sizes.shape is None:
        return 0
    longest = largest_context(sizes.shape, weights, placement, memory)
    return longest // _CONTEXT_STEP * _CONTEXT_STEP


def _tokens(sizes: Sizes, context: int | None) -> int:
    own = sizes.shape.context_length if sizes.shape else 0
    return min(context or own, own)


def largest_that_fits(others: Mapping[str, int], memory: int) -> str | None:
    """The name among `others` that wants the most bytes and no more than `memory`."""
    fitting = {name: wanted for name, wanted in others.items() if wanted <= memory}
    return max(fitting, key=lambda name: fitting[name]) if fitting else None


def _way_out(room: int, largest: str | None) -> str:
    ways = [f"{largest} is the largest model that would fit."] if largest else []
    if room >= _USEFUL_CONTEXT:
        ways.append(f"This one would with EDGEVLM_CONTEXT_LENGTH={room}.")
    return " ".join([*ways, "Closing other programs makes room."])


def _weigh(option: Option, sizes: Sizes, target: Target, work: Workload) -> Candidate:
    weights = sizes.weights(option.placement)
    if weights is None:
        return Candidate(option.placement, option.refused)
    memory = predict_memory(sizes.shape, weights, option.placement, work.context)
    enough = memory.total <= target.memory_for(option.placement.language)
    if sizes.shape is None:
        return Candidate(option.placement, option.refused, memory, None, enough)
    timing = predict_timing(sizes.shape, weights, option.placement, work, target)
    return Candidate(option.placement, option.refused, memory, timing, enough)


def _reason(
    candidate: Candidate, chosen: Candidate | None, target: Target, here: Collection[Placement]
) -> Candidate:
    reason = candidate.refused
    if reason is None and candidate.fits is False and candidate.memory is not None:
        room = target.memory_for(candidate.placement.language)
        reason = f"does not fit: wants {_gb(candidate.memory.total)} of {_gb(room)}"
    if reason is None and chosen is not None and chosen.timing and candidate.timing:
        theirs, ours = candidate.timing.answer, chosen.timing.answer
        fetched = chosen.placement in here and candidate.placement not in here
        other = "faster, but not fetched" if fetched else "after the device's own runtime"
        word = "slower" if theirs > ours else other
        reason = f"{word}: {theirs:.2f} s an answer, {chosen.placement} {ours:.2f} s"
    return replace(candidate, refused=reason or "comes after the chosen one")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
