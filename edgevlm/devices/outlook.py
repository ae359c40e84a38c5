"""What is foreseen of a model on this machine, or on one that a profile describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from edgevlm.devices import placement as here
from edgevlm.devices.machine import Machine, this_machine
from edgevlm.devices.predict import predict_timing
from edgevlm.devices.profiles import Profile
from edgevlm.devices.shape import ModelShape, Weights, usual_workload
from edgevlm.devices.target import Target, profile_target, this_target
from edgevlm.engine.placement import Placement


@dataclass(frozen=True)
class Sizes:
    """What is known of a model: its shape, and what each placement's files weigh."""

    name: str
    shape: ModelShape | None
    weights: Callable[[Placement], Weights | None]


class ThisMachine:
    """The machine we run on; measured when the first speed is asked for. `threads` are compute
    threads, None for as many as suit it."""

    def __init__(self, sizes: Sizes, home: Path, threads: int | None = None) -> None:
        self.sizes = sizes
        self._home, self._threads = home, threads
        # Asking a runtime takes some milliseconds, and one is in many placements.
        self._unavailable = cache(here.unavailable)

    @cached_property
    def machine(self) -> Machine:
        return this_machine()

    @cached_property
    def target(self) -> Target:
        return this_target(self.machine, self._home, self._threads)

    @property
    def apple(self) -> bool:
        return self.machine.apple_silicon

    def seconds(self, placement: Placement) -> float | None:
        return _seconds(self.sizes, placement, self.target)

    def refusal(self, placement: Placement) -> str | None:
        return self._unavailable(placement.language) or self._unavailable(placement.vision)


class OtherDevice:
    """A device that we know by its profile: whatever runs there counts as installed."""

    def __init__(self, sizes: Sizes, profile: Profile) -> None:
        self.sizes = sizes
        self.target = profile_target(profile)
        self.apple = profile.chip.startswith("Apple ")
        self._runtimes = profile.runtimes

    def seconds(self, placement: Placement) -> float | None:
        return _seconds(self.sizes, placement, self.target)

    def refusal(self, placement: Placement) -> str | None:
        missing = [r for r in (placement.language, placement.vision) if r not in self._runtimes]
        return f"{missing[0]} does not run on this device" if missing else None


def _seconds(sizes: Sizes, placement: Placement, target: Target) -> float | None:
    weights = sizes.weights(placement)
    if sizes.shape is None or weights is None:
        return None
    work = usual_workload(sizes.shape)
    return predict_timing(sizes.shape, weights, placement, work, target).answer
