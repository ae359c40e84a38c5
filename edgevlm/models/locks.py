"""One process at a time: a lock that others wait for, and say that they do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgevlm.models.progress import Progress


@contextlib.contextmanager
def locked(root: Path, key: str, what: str, progress: Progress) -> Iterator[None]:
    """Hold `root/.locks/<key>.lock` for the block; whoever waits says for whom: one that is
    fetching `what`. The lock goes with its process, however that ends."""
    from filelock import FileLock, Timeout

    folder = root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"Waiting for another process that is fetching {what} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
