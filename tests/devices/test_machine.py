"""Machines as their own texts tell of them. The texts are written by hand after real ones,
cut to the lines that are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.devices.linux import linux_machine
from edgevlm.devices.machine import Gpu, this_machine
from edgevlm.devices.macos import gpu_limit, macos_machine
from edgevlm.devices.profiles import find_profile
from edgevlm.devices.target import this_target
from edgevlm.devices.windows import MemoryStatus, machine_of

GB = 2**30

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
flags\t\t: fpu sse2 avx2 fma f16c avx512f avx512_vnni
processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
flags\t\t: fpu sse2 avx2 fma f16c avx512f avx512_vnni
"""
PI = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
processor\t: 1
processor\t: 2
processor\t: 3
"""
MEMINFO = "MemTotal:       16303412 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n"

SYSCTL = """\
machdep.cpu.brand_string: Apple M2 Pro
hw.memsize: 17179869184
hw.physicalcpu: 10
hw.perflevel0.physicalcpu: 6
hw.perflevel1.physicalcpu: 4
hw.pagesize: 16384
iogpu.wired_limit_mb: 0
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               100000.
Pages active:                             300000.
Pages inactive:                           200000.
Pages speculative:                          1000.
Pages wired down:                         150000.
Pages purgeable:                            2000.
"Translation faults":                  123456789.
"""
IOREG = """\
+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x1000004c6, registered>
    {
      "gpu-core-count" = 16
      "model" = "Apple M2 Pro"
    }
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def silent(command: Sequence[str]) -> str:
    return ""


def test_a_linux_server(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/cpuinfo": XEON, "proc/meminfo": MEMINFO})
    machine = linux_machine("x86_64", root, silent)
    assert machine.chip == "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz"
    assert machine.features == ("avx2", "fma", "f16c", "avx512", "avx512-vnni")
    assert machine.performance_cores == 2
    assert machine.total == machine.limit == 16303412 * 1024
    assert machine.available == 12000000 * 1024
    assert machine.gpus == ()


@pytest.mark.parametrize(
    ("cgroup", "folder", "names"),
    [
        ("0::/box\n", "sys/fs/cgroup/box", ("memory.max", "memory.current", "")),
        (
            "4:memory:/box\n",
            "sys/fs/cgroup/memory/box",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ),
    ],
)
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, cgroup: str, folder: str, names: tuple[str, str, str]
) -> None:
    limit, usage, total = names
    files = {
        "proc/cpuinfo": XEON,
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": cgroup,
        f"{folder}/{limit}": f"{2 * GB}\n",
        f"{folder}/{usage}": f"{GB}\n",
        f"{folder}/memory.stat": (
            f"anon 1\n{total}inactive_file {GB // 4}\n{total}active_file {GB // 8}\nother 9\n"
        ),
    }
    machine = linux_machine("x86_64", write(tmp_path, files), silent)
    assert machine.limit == 2 * GB
    # File pages, which the kernel drops when memory is wanted, don't count as used.
    assert machine.available == 2 * GB - GB * 5 // 8


def test_a_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": XEON,
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
    }
    machine = linux_machine("x86_64", write(tmp_path, files), silent)
    assert machine.limit == machine.total


def test_a_raspberry_pi(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": PI,
        "proc/meminfo": MEMINFO,
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    }
    machine = linux_machine("aarch64", write(tmp_path, files), silent)
    assert machine.board == machine.chip == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.features == ("neon", "fp16", "dotprod")
    assert machine.performance_cores == 4


def test_graphics_of_a_linux_machine(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": XEON,
        "proc/meminfo": MEMINFO,
        "sys/class/drm/card0/device/vendor": "0x8086\n",
        "sys/class/drm/card1/device/vendor": "0x10de\n",
        "sys/class/drm/card2/device/vendor": "0x1002\n",
        "sys/class/drm/card2/device/mem_info_vram_total": "8573157376\n",
    }
    root = write(tmp_path, files)
    machine = linux_machine(
        "x86_64", root, lambda command: "NVIDIA GeForce RTX 4070, 12282\nNo such, device was\n"
    )
    assert machine.gpus == (
        Gpu("NVIDIA GeForce RTX 4070", "cuda", 12282 * 2**20),
        Gpu("Intel (card0)", "vulkan"),
        Gpu("AMD (card2)", "vulkan", 8573157376),
    )
    assert linux_machine("x86_64", root, silent, graphics=False).gpus == ()


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    machine = linux_machine("riscv64", tmp_path, silent)
    assert machine.chip == "riscv64"
    assert machine.total == machine.available == 0


def tools(command: Sequence[str]) -> str:
    return {"sysctl": SYSCTL, "vm_stat": VM_STAT, "ioreg": IOREG}[command[0].rpartition("/")[2]]


def test_a_mac() -> None:
    machine = macos_machine(tools, "arm64")
    assert machine.apple_silicon
    assert machine.chip == "Apple M2 Pro"
    assert (machine.performance_cores, machine.efficiency_cores) == (6, 4)
    assert machine.features == ("neon", "fp16", "dotprod", "i8mm")
    assert machine.gpus == (Gpu("Apple M2 Pro", "metal", None, 16),)
    assert machine.neural_engine
    assert machine.total == 16 * GB
    assert machine.available == 303000 * 16384
    assert machine.gpu_limit == 16 * GB * 2 // 3


def test_a_mac_of_a_later_chip_still_has_graphics(home: Path) -> None:
    later = replace(macos_machine(tools, "arm64"), chip="Apple M10 Ultra")
    found = this_target(later, home, threads=1)
    assert found.processor("mlx") == "gpu"
    assert found.gflops["gpu"] == find_profile("apple-m1").gflops["gpu"]


def test_a_mac_with_an_intel_processor_has_no_neural_engine() -> None:
    text = "machdep.cpu.brand_string: Intel(R) Core(TM) i7\nhw.memsize: 17179869184\n"
    text += "hw.physicalcpu: 6\nhw.optional.avx2_0: 1\n"
    machine = macos_machine(lambda command: text if "sysctl" in command[0] else "", "x86_64")
    assert not machine.apple_silicon
    assert not machine.neural_engine
    assert machine.gpu_limit is None
    assert (machine.performance_cores, machine.features) == (6, ("avx2",))
    assert machine.available == machine.total


def test_what_metal_lets_a_program_hold() -> None:
    assert gpu_limit(16 * GB, 0) == 16 * GB * 2 // 3
    assert gpu_limit(128 * GB, 0) == 96 * GB
    assert gpu_limit(16 * GB, 14_000) == 14_000 * 2**20


def test_a_windows_machine() -> None:
    status = MemoryStatus(ullTotalPhys=16 * GB, ullAvailPhys=9 * GB)
    environ = {"PROCESSOR_IDENTIFIER": "AMD64 Family 25 Model 80, AuthenticAMD"}
    machine = machine_of(
        status, [40], "AMD64", environ, 16, lambda command: "AMD Radeon(TM) Graphics\r\n\r\n"
    )
    assert (machine.total, machine.available) == (16 * GB, 9 * GB)
    assert machine.performance_cores == 8
    assert machine.features == ("avx2",)
    assert machine.gpus == (Gpu("AMD Radeon(TM) Graphics", "vulkan"),)


def test_this_machine_is_found() -> None:
    machine = this_machine()
    assert machine.total >= machine.limit >= machine.available > 0
    assert machine.performance_cores >= 1
    assert machine.fingerprint == this_machine().fingerprint
