"""A Linux machine, read from /proc and /sys; in a container with what its limits leave."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgevlm.devices.commands import Run, output
from edgevlm.devices.machine import Gpu, Machine
from edgevlm.devices.threads import control_groups, linux_cores, read_text

# What the matrix kernels of ONNX Runtime (MLAS) and llama.cpp (ggml) choose by.
_FEATURES = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "avx512_bf16": "avx512-bf16",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
_DRM_VENDORS = {"0x1002": "AMD", "0x10de": "NVIDIA", "0x8086": "Intel"}
_UNLIMITED = 1 << 60  # control groups of the first version say so with a number near 2**63


def linux_machine(
    arch: str, root: Path = Path("/"), run: Run = output, *, graphics: bool = True
) -> Machine:
    """The machine whose /proc and /sys are under `root`."""
    fields = _cpuinfo(root)
    memory = _meminfo(root)
    total = memory.get("MemTotal", 0)
    available = memory.get("MemAvailable", memory.get("MemFree", 0))
    limit = total
    for allowed, used in _group_limits(root):
        if allowed < _UNLIMITED:
            limit = min(limit, allowed)
            available = min(available, max(0, allowed - used))
    fast, slow = linux_cores(_online(root, fields), root)
    board = _device_tree(root)
    return Machine(
        system="linux",
        arch=arch,
        chip=fields.get("model name") or fields.get("Hardware") or board or arch,
        performance_cores=fast,
        efficiency_cores=slow,
        features=_features(fields),
        total=total,
        limit=limit,
        available=available,
        gpus=tuple(_gpus(root, run, board)) if graphics else (),
        board=board,
    )


def _cpuinfo(root: Path) -> dict[str, str]:
    """The fields of the first processor; `processor` holds how many there are."""
    fields: dict[str, str] = {}
    count = 0
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        count += name == "processor"
        fields.setdefault(name, value)
    fields["processor"] = str(count)
    return fields


def _features(fields: dict[str, str]) -> tuple[str, ...]:
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return tuple(dict.fromkeys(name for flag, name in _FEATURES.items() if flag in flags))


def _online(root: Path, fields: dict[str, str]) -> frozenset[int]:
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(int(fields["processor"])))


def _meminfo(root: Path) -> dict[str, int]:
    """The bytes of each line of /proc/meminfo."""
    sizes = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            sizes[name] = int(number[0]) * 1024
    return sizes


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(allowed, used) bytes of every control group that we are in.

    What is used counts without file pages, which the kernel drops before it refuses memory:
    a model that was just fetched and hashed fills a group with them. MemAvailable does so too.
    """
    names = {
        2: ("memory.max", "memory.current", ("active_file", "inactive_file")),
        1: (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("total_active_file", "total_inactive_file"),
        ),
    }
    for version, group in control_groups(root, "memory"):
        limit, usage, pages = names[version]
        allowed, used = read_text(group / limit), read_text(group / usage)
        if allowed and allowed.isdecimal():
            stat = (read_text(group / "memory.stat") or "").splitlines()
            droppable = [line.split()[1] for line in stat if line.partition(" ")[0] in pages]
            held = int(used) if used and used.isdecimal() else 0
            yield int(allowed), max(0, held - sum(map(int, droppable)))


def _device_tree(root: Path) -> str | None:
    """The name of a board: "Raspberry Pi 5 Model B Rev 1.0"."""
    text = read_text(root / "proc/device-tree/model")
    return text.rstrip("\0").strip() or None if text else None


def _gpus(root: Path, run: Run, board: str | None) -> Iterator[Gpu]:
    found = False
    listing = run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
    for name, mebibytes in re.findall(r"^(.+), *(\d+|\[N/A\])$", listing, re.M):
        found = True
        yield Gpu(name, "cuda", int(mebibytes) * 2**20 if mebibytes.isdecimal() else None)
    if not found and board and "jetson" in board.lower():
        found = True
        yield Gpu("NVIDIA, of the board", "cuda")
    for card in sorted((root / "sys/class/drm").glob("card[0-9]*/device/vendor")):
        vendor = _DRM_VENDORS.get(read_text(card) or "")
        if vendor and not (vendor == "NVIDIA" and found):
            own = read_text(card.with_name("mem_info_vram_total"))
            memory = int(own) if own and own.isdecimal() else None
            yield Gpu(f"{vendor} ({card.parts[-3]})", "vulkan", memory)
