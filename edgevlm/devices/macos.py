"""A Mac, as sysctl, vm_stat and ioreg tell it."""

from __future__ import annotations

import platform
import re

from edgevlm.devices.commands import Run, output
from edgevlm.devices.machine import Gpu, Machine

_KEYS = (
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.physicalcpu",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "hw.pagesize",
    "iogpu.wired_limit_mb",
    "hw.optional.arm.FEAT_DotProd",
    "hw.optional.arm.FEAT_I8MM",
    "hw.optional.arm.FEAT_BF16",
    "hw.optional.avx2_0",
)
_FEATURES = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.avx2_0": "avx2",
}
_SMALL_MAC = 36 * 2**30


def macos_machine(run: Run = output, arch: str | None = None, *, graphics: bool = True) -> Machine:
    """The Mac whose tools `run` runs."""
    arch = arch or platform.machine()
    values = _sysctl(run)
    total = _int(values, "hw.memsize")
    apple = arch == "arm64"
    performance = _int(values, "hw.perflevel0.physicalcpu") or _int(values, "hw.physicalcpu")
    features = [name for key, name in _FEATURES.items() if values.get(key) == "1"]
    return Machine(
        system="macos",
        arch=arch,
        chip=values.get("machdep.cpu.brand_string", arch),
        performance_cores=max(1, performance),
        efficiency_cores=_int(values, "hw.perflevel1.physicalcpu"),
        features=tuple((["neon", "fp16"] if apple else []) + features),
        total=total,
        limit=total,
        available=_available(run, _int(values, "hw.pagesize") or 4096) or total,
        gpus=(_gpu(run),) if apple and graphics else (),
        gpu_limit=gpu_limit(total, _int(values, "iogpu.wired_limit_mb")) if apple else None,
        # Every Apple Silicon Mac has one; no interface of the system says so.
        neural_engine=apple,
    )


def gpu_limit(total: int, wired_limit_mb: int) -> int:
    """What Metal lets a program hold: `iogpu.wired_limit_mb` where it is set, else
    `recommendedMaxWorkingSetSize` as it is by default.

    That was reported as 11.84 GB of 16 (llmfit #754: 74%) and as 107.52 GiB of 128
    (ds4 #893: 84%); two thirds of smaller machines is the careful end.
    """
    if wired_limit_mb:
        return min(total, wired_limit_mb * 2**20)
    return total * 2 // 3 if total <= _SMALL_MAC else total * 3 // 4


def _sysctl(run: Run) -> dict[str, str]:
    lines = run(["/usr/sbin/sysctl", *_KEYS]).splitlines()
    return {key: value.strip() for key, _, value in (line.partition(": ") for line in lines)}


def _int(values: dict[str, str], key: str) -> int:
    text = values.get(key, "")
    return int(text) if text.isdecimal() else 0


def _available(run: Run, page: int) -> int:
    """Free, inactive, speculative and purgeable pages, as Activity Monitor's and psutil's
    figure counts them. The compressor could make room for more."""
    pages = dict(re.findall(r"^Pages ([a-z ]+):\s+(\d+)\.", run(["/usr/bin/vm_stat"]), re.M))
    kinds = ("free", "inactive", "speculative", "purgeable")
    return sum(int(pages.get(kind, 0)) for kind in kinds) * page


def _gpu(run: Run) -> Gpu:
    text = run(["/usr/sbin/ioreg", "-rc", "AGXAccelerator", "-d1"])
    model = re.search(r'"model"\s*=\s*"([^"]+)"', text)
    cores = re.search(r'"gpu-core-count"\s*=\s*(\d+)', text)
    return Gpu(model[1] if model else "Apple", "metal", None, int(cores[1]) if cores else None)
