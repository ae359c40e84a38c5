"""How many compute threads suit this machine: one a fast physical core that we may use.

Matrix kernels keep a core's vector units busy, so a second thread on the same core
(SMT) and threads on slow cores, for which the fast ones wait at every operator, cost
more than they bring. A container's CPU quota counts as well: threads above it are
throttled all at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_SLOW_CORE = 0.5  # of the fastest core's capacity: below it are the little cores of Arm


def compute_threads() -> int:
    """Compute threads for one model on this machine, at least 1."""
    if sys.platform == "linux":
        return linux_threads(os.sched_getaffinity(0))
    if sys.platform == "darwin":
        return _macos_performance_cores() or os.cpu_count() or 1
    # Windows: two logical processors a core are the rule where SMT is on.
    return max(1, (os.cpu_count() or 2) // 2)


def linux_threads(allowed: Iterable[int], root: Path = Path("/")) -> int:
    """The same for the CPUs `allowed` of a Linux machine whose /proc and /sys are under `root`."""
    cores, _ = linux_cores(allowed, root)
    quota = _cpu_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def linux_cores(allowed: Iterable[int], root: Path = Path("/")) -> tuple[int, int]:
    """(fast, slow) physical cores among the CPUs `allowed`, whatever the quota."""
    allowed = frozenset(allowed)
    devices = root / "sys/devices"
    return len(_fast_cores(allowed, devices)), len(_slow_cores(allowed, devices))


def _fast_cores(allowed: frozenset[int], devices: Path) -> set[object]:
    """One key a physical core: its siblings, or the CPU itself where /sys is silent."""
    return _physical(_fast_cpus(allowed, devices), devices)


def _slow_cores(allowed: frozenset[int], devices: Path) -> set[object]:
    return _physical(allowed - _fast_cpus(allowed, devices), devices)


def _fast_cpus(allowed: frozenset[int], devices: Path) -> frozenset[int]:
    cpus = devices / "system/cpu"
    capacity = {cpu: _number(cpus / f"cpu{cpu}/cpu_capacity") for cpu in allowed}
    fastest = max(capacity.values(), default=0)
    efficient = _cpu_list(read_text(devices / "cpu_atom/cpus"))
    fast = {cpu for cpu in allowed - efficient if capacity[cpu] >= _SLOW_CORE * fastest}
    return frozenset(fast) or allowed


def _physical(cpus: frozenset[int], devices: Path) -> set[object]:
    topology = "system/cpu/cpu{}/topology/thread_siblings_list"
    return {read_text(devices / topology.format(cpu)) or cpu for cpu in cpus}


def _number(path: Path) -> int:
    text = read_text(path)
    return int(text) if text is not None and text.isdecimal() else 0


def _cpu_list(text: str | None) -> frozenset[int]:
    """The kernel's notation: `0-3,8`."""
    cpus: set[int] = set()
    for span in (text or "").split(","):
        first, _, last = span.partition("-")
        if first.isdecimal():
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the control groups (v2 and v1) grant, None if unlimited."""
    shares = {2: _quota_v2, 1: _quota_v1}
    quotas = [shares[version](group) for version, group in control_groups(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every control group that this process is in, and of those above."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            yield from ((2, group) for mount in mounts for group in _upwards(mount, path))
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
            yield from ((1, group) for mount in mounts for group in _upwards(mount, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group and all above it: each limits those below. In a container the path may be
    the host's and only the mount's top be there."""
    group = Path(path.strip().lstrip("/"))
    for part in (group, *group.parents):
        yield mount / part


def _quota_v2(group: Path) -> float | None:
    quota, _, period = (read_text(group / "cpu.max") or "max").partition(" ")
    return _share(quota, period)


def _quota_v1(group: Path) -> float | None:
    return _share(read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us"))


def _share(quota: str | None, period: str | None) -> float | None:
    """Quota over period; "max" and -1 mean no limit."""
    if not (quota and period and quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _macos_performance_cores() -> int | None:
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        try:
            answer = subprocess.run(
                ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.SubprocessError):
            return None
        if answer.stdout.strip().isdecimal():
            return max(1, int(answer.stdout))
    return None


def read_text(path: Path) -> str | None:
    """A small file of the kernel's without the blanks around it, None where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
