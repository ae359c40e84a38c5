"""A device as predictions see it: this machine, or one that a profile describes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from edgevlm.devices.costs import Processor
from edgevlm.devices.machine import Machine
from edgevlm.devices.measure import measured
from edgevlm.devices.profiles import Profile, find_profile, profile_of_chip
from edgevlm.devices.threads import compute_threads

# What the rest of this program and the system's own caches want beside a model.
_SPARE = 0.05
_OLDEST_MAC = "apple-m1"


@dataclass(frozen=True, slots=True)
class Target:
    """`memory` is the bytes that a model may have, `gpu_memory` those on the graphics
    processor. `gflops` has the 1e9 operations a second of each processor that there is,
    `bandwidth` is in 1e9 bytes a second, that of a graphics card's own memory apart."""

    name: str
    title: str
    memory: int
    gpu_memory: int
    gflops: dict[Processor, float]
    bandwidth: float
    gpu_bandwidth: float
    unified: bool

    def processor(self, runtime: str) -> Processor:
        """Where a runtime would compute: MLX and llama.cpp on Metal or a profile's GPU."""
        if runtime == "coreml" and "npu" in self.gflops:
            return "npu"
        return "gpu" if runtime in ("mlx", "llamacpp") and "gpu" in self.gflops else "cpu"

    def memory_for(self, runtime: str) -> int:
        if self.processor(runtime) == "gpu":
            return min(self.memory, self.gpu_memory) if self.unified else self.gpu_memory
        return self.memory


def this_target(machine: Machine, home: Path, threads: int | None = None) -> Target:
    """This machine on so many compute threads, measured if it has not been (0.4 s).

    Of a Mac's graphics processor the speed comes from the profile of its chip, as that can't
    be measured without its runtime; of a chip that came later from the first one's.
    """
    found = measured(home, machine.fingerprint, threads or compute_threads())
    gflops: dict[Processor, float] = {"cpu": found.gflops}
    bandwidth, gpu_bandwidth = found.bandwidth, 0.0
    if machine.apple_silicon:
        profile = profile_of_chip(machine.chip) or find_profile(_OLDEST_MAC)
        gflops |= {p: profile.gflops[p] for p in ("gpu", "npu") if p in profile.gflops}
        gpu_bandwidth = profile.bandwidth
    return Target(
        name="this machine",
        title=machine.board or machine.chip,
        memory=memory_left(machine),
        gpu_memory=machine.gpu_limit or 0,
        gflops=gflops,
        bandwidth=bandwidth,
        gpu_bandwidth=gpu_bandwidth or bandwidth,
        unified=machine.apple_silicon,
    )


def memory_left(machine: Machine, runtime: str = "") -> int:
    """Bytes that a model may have now: what programs and limits leave, less a little for
    everything else; on a Mac's graphics processor no more than that may hold."""
    memory = max(0, int(machine.available - _SPARE * machine.limit))
    on_gpu = machine.apple_silicon and runtime in ("mlx", "llamacpp")
    return min(memory, machine.gpu_limit or memory) if on_gpu else memory


def memory_allowed(machine: Machine, runtime: str) -> int:
    """`memory_left`, and no bound where the system doesn't tell: nothing is refused on a guess."""
    return memory_left(machine, runtime) if machine.total else sys.maxsize


def profile_target(profile: Profile) -> Target:
    """The device of a profile."""
    return Target(
        name=profile.name,
        title=profile.title,
        memory=profile.for_one_app,
        gpu_memory=profile.for_one_app,
        gflops=dict(profile.gflops),
        bandwidth=profile.bandwidth,
        gpu_bandwidth=profile.bandwidth,
        unified=True,
    )
