"""How fast this machine multiplies and reads memory: two short measurements, kept on disk.

Products of small matrices that stay in a core's cache give the processor's speed, a walk
through more memory than the caches hold gives the bandwidth that decoding gets. They bound
what a runtime on the same cores can do; how near each runtime comes is in `costs`.

Each thread measures itself, in runs shorter than a time slice of the scheduler of which the
quickest count: other programs then disturb the figures little. BLAS's own threads, which
wait for each other, showed a hundredth of the speed on a busy machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

_SIDE, _STACK = 64, 64  # OpenBLAS multiplies matrices of this size on one thread
_WALKED_BYTES, _SLICE_BYTES = 128 * 2**20, 2 * 2**20
_BUDGET_S = 0.15  # for each of the two
_QUICKEST = 0.1  # of the runs: the single best may have been lucky
_FILE = "device.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """`gflops`: float32 operations in 1e9 a second; `bandwidth`: bytes read a second in 1e9."""

    gflops: float
    bandwidth: float


def measured(home: Path, fingerprint: str, threads: int) -> Measured:
    """The figures of the machine that `fingerprint` names, on so many threads: from the home
    folder, or measured now, which takes less than half a second, and kept there."""
    fingerprint = f"{fingerprint} {threads}"
    kept = _kept(home / _FILE, fingerprint)
    if kept is None:
        kept = measure(threads)
        _keep(home / _FILE, fingerprint, kept)
    return kept


def measure(threads: int) -> Measured:
    """Measure now, on as many threads as a model would get."""
    import numpy as np

    rng = np.random.default_rng(0)
    matrices = rng.random((threads, _STACK, _SIDE, _SIDE), np.float32)
    products = np.empty_like(matrices)
    memory = np.ones(
        (threads, _WALKED_BYTES // _SLICE_BYTES // threads + 1, _SLICE_BYTES // 4), "f4"
    )

    def multiply(thread: int, turn: int) -> None:
        np.matmul(matrices[thread], matrices[thread], out=products[thread])

    def read(thread: int, turn: int) -> None:
        memory[thread, turn % memory.shape[1]].max()

    return Measured(
        gflops=_a_second(multiply, threads) * _STACK * 2 * _SIDE**3 / 1e9,
        bandwidth=_a_second(read, threads) * _SLICE_BYTES / 1e9,
    )


def _a_second(run: Callable[[int, int], None], threads: int) -> float:
    """How often all threads together run it a second."""
    with ThreadPoolExecutor(threads) as pool:
        times = pool.map(lambda thread: _seconds(lambda turn: run(thread, turn)), range(threads))
        return sum(1 / sorted(each)[int(_QUICKEST * len(each))] for each in times)


def _seconds(run: Callable[[int], None]) -> list[float]:
    times: list[float] = []
    ended = time.perf_counter()
    until = ended + _BUDGET_S
    while ended < until or len(times) < 3:
        started = time.perf_counter()
        run(len(times))
        ended = time.perf_counter()
        times.append(ended - started)
    return times


def _kept(path: Path, fingerprint: str) -> Measured | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("fingerprint") != fingerprint:
            return None
        found = Measured(float(record["gflops"]), float(record["bandwidth"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.gflops > 0 and found.bandwidth > 0 else None


def _keep(path: Path, fingerprint: str, found: Measured) -> None:
    # A home that can't be written costs a measurement a process, nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps({"fingerprint": fingerprint, **asdict(found)}), "utf-8")
        draft.replace(path)
