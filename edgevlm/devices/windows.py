"""A Windows machine: memory by GlobalMemoryStatusEx, the rest by its environment and tools."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, Sequence

from edgevlm.devices.commands import Run, output
from edgevlm.devices.machine import Gpu, Machine

# IsProcessorFeaturePresent, winnt.h.
_FEATURES = {40: "avx2", 41: "avx512", 43: "dotprod"}
_VIDEO = "Get-CimInstance Win32_VideoController | ForEach-Object { $_.Name }"


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = [
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    ]


def windows_machine(*, graphics: bool = True) -> Machine:
    """This machine."""
    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined]
    status = MemoryStatus(dwLength=ctypes.sizeof(MemoryStatus))
    kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    present = [n for n, name in _FEATURES.items() if kernel32.IsProcessorFeaturePresent(n)]
    run = output if graphics else _silent
    return machine_of(status, present, platform.machine(), os.environ, os.cpu_count() or 1, run)


def _silent(command: Sequence[str]) -> str:
    return ""


def machine_of(
    status: MemoryStatus,
    present: list[int],
    arch: str,
    environ: Mapping[str, str],
    logical: int,
    run: Run = output,
) -> Machine:
    """The machine that these answers of the system describe."""
    listing = run(["powershell", "-NoProfile", "-Command", _VIDEO])
    names = [line.strip() for line in listing.splitlines() if line.strip()]
    arm = arch.lower() == "arm64"
    return Machine(
        system="windows",
        arch=arch,
        chip=environ.get("PROCESSOR_IDENTIFIER", arch),
        # Two logical processors a core are the rule on x86, and one on Arm.
        performance_cores=max(1, logical if arm else logical // 2),
        efficiency_cores=0,
        features=tuple((["neon"] if arm else []) + [_FEATURES[n] for n in present]),
        total=status.ullTotalPhys,
        limit=status.ullTotalPhys,
        available=status.ullAvailPhys,
        gpus=tuple(Gpu(name, "vulkan") for name in names if "basic" not in name.lower()),
    )
