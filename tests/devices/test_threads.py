"""Threads are counted from trees of /proc and /sys files as real kernels write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgevlm.devices.threads import compute_threads, linux_threads


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def topology(siblings: dict[int, str]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text
        for cpu, text in siblings.items()
    }


FOUR_CORES_SMT = topology({cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})


def test_this_machine_gets_between_one_thread_and_one_a_cpu() -> None:
    assert 1 <= compute_threads() <= (os.cpu_count() or 1)


def test_siblings_count_as_one_core(tmp_path: Path) -> None:
    assert linux_threads(range(8), write(tmp_path, FOUR_CORES_SMT)) == 4


def test_affinity_limits_the_cores(tmp_path: Path) -> None:
    root = write(tmp_path, FOUR_CORES_SMT)
    assert linux_threads({0, 4}, root) == 1
    assert linux_threads({0, 1, 2}, root) == 3


def test_a_machine_without_sys_counts_its_cpus(tmp_path: Path) -> None:
    assert linux_threads(range(6), tmp_path) == 6


def test_efficiency_cores_of_x86_are_left_out(tmp_path: Path) -> None:
    cores = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4", 5: "5", 6: "6", 7: "7"}
    root = write(tmp_path, topology(cores) | {"sys/devices/cpu_atom/cpus": "4-6,7"})
    assert linux_threads(range(8), root) == 2
    assert linux_threads({5, 6, 7}, root) == 3, "if only slow cores are allowed, they do the work"


def test_little_cores_of_arm_are_left_out(tmp_path: Path) -> None:
    capacities = [250, 250, 250, 250, 870, 870, 870, 1024]
    files = {
        f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": str(capacity)
        for cpu, capacity in enumerate(capacities)
    }
    assert linux_threads(range(8), write(tmp_path, files)) == 4


@pytest.mark.parametrize(
    ("limit", "threads"), [("200000 100000", 2), ("150000 100000", 1), ("5000 100000", 1)]
)
def test_quota_of_cgroup_v2(tmp_path: Path, limit: str, threads: int) -> None:
    files = {"proc/self/cgroup": "0::/box/inner", "sys/fs/cgroup/box/inner/cpu.max": limit}
    assert linux_threads(range(8), write(tmp_path, FOUR_CORES_SMT | files)) == threads


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/box/inner",
        "sys/fs/cgroup/box/inner/cpu.max": "max 100000",
        "sys/fs/cgroup/box/cpu.max": "300000 100000",
        "sys/fs/cgroup/cpu.max": "800000 100000",
    }
    assert linux_threads(range(8), write(tmp_path, FOUR_CORES_SMT | files)) == 3


def test_a_container_sees_its_quota_at_the_top_of_the_mount(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/docker-0123.scope",
        "sys/fs/cgroup/cpu.max": "100000 100000",
    }
    assert linux_threads(range(8), write(tmp_path, FOUR_CORES_SMT | files)) == 1


@pytest.mark.parametrize(("quota", "threads"), [("250000", 2), ("-1", 4)])
def test_quota_of_cgroup_v1(tmp_path: Path, quota: str, threads: int) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n0::/",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    }
    assert linux_threads(range(8), write(tmp_path, FOUR_CORES_SMT | files)) == threads
