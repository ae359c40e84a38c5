"""What this machine is: processor, memory and what is left of it, graphics."""

from __future__ import annotations

import hashlib
import platform
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor. `memory` bytes of its own, None where it shares the machine's;
    `cores` None where unknown; `api` says how runtimes reach it ("metal", "cuda", "vulkan")."""

    name: str
    api: str | None = None
    memory: int | None = None
    cores: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. Memory in bytes.

    `system` is "macos", "linux" or "windows"; `performance_cores` and `efficiency_cores` are
    physical ones; `features` name what the processor's kernels may use. `total` is what is
    built in, `limit` what this process may have of it (a control group's), `available` what
    programs and limits leave at this moment. `gpu_limit` is what the graphics processor may
    hold where it shares the machine's memory. `board` is a Raspberry Pi's or Jetson's name.
    """

    system: str
    arch: str
    chip: str
    performance_cores: int
    efficiency_cores: int
    features: tuple[str, ...]
    total: int
    limit: int
    available: int
    gpus: tuple[Gpu, ...] = ()
    gpu_limit: int | None = None
    neural_engine: bool = False
    board: str | None = None

    @property
    def apple_silicon(self) -> bool:
        return self.system == "macos" and self.arch == "arm64"

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the speed of this machine's processor and memory."""
        same = (self.arch, self.chip, self.performance_cores, self.efficiency_cores)
        return hashlib.sha256(repr((*same, self.features, self.total)).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def this_machine(*, graphics: bool = False) -> Machine:
    """Look at this machine, which takes some milliseconds; `graphics` too, some tenths of a
    second more."""
    if sys.platform == "darwin":
        from edgevlm.devices.macos import macos_machine

        return macos_machine(graphics=graphics)
    if sys.platform == "win32":
        from edgevlm.devices.windows import windows_machine

        return windows_machine(graphics=graphics)
    from edgevlm.devices.linux import linux_machine

    return linux_machine(platform.machine(), graphics=graphics)
