"""Where a conversion works: a hidden folder beside its result, which takes the result's place.

.<name>.converting/state.json     what is being made, and the stages that are finished
.<name>.converting/files/         the result, until it is whole
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edgevlm.errors import UsageError
from edgevlm.models.disk import sync_file, sync_folder, write_atomically


class Workplace:
    """The work towards `output`. What is there from other work than `key` is thrown away."""

    def __init__(self, output: Path, key: str) -> None:
        self._output, self._key = output, key
        self.folder = output.with_name(f".{output.name}.converting")
        self._old = output.with_name(f".{output.name}.replaced")
        self._state = self.folder / "state.json"
        self._done = self._recall()
        if self._done is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.files.mkdir(parents=True)
            self._done = []
            self._remember()

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def stage(self, name: str, work: Callable[[], None]) -> None:
        """Do a stage that is not finished yet; what it has written survives a power cut."""
        assert self._done is not None
        if name not in self._done:
            work()
            for path in self.folder.rglob("*"):
                if path.is_file():
                    sync_file(path)
            self._done.append(name)
            self._remember()

    def discard(self) -> None:
        """Keep nothing of what can't become a result."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self) -> None:
        """Put the result in its place: whole, or the old one stays. Raises OSError."""
        if self._output.exists():
            self._output.rename(self._old)
        try:
            self.files.rename(self._output)
        except BaseException:
            restore(self._output)
            raise
        sync_folder(self._output.parent)
        shutil.rmtree(self._old, ignore_errors=True)
        self.discard()

    def _recall(self) -> list[str] | None:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            return list(state["done"]) if state["key"] == self._key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _remember(self) -> None:
        write_atomically(self._state, json.dumps({"key": self._key, "done": self._done}))


def restore(output: Path) -> None:
    """After a crash in the middle of `publish`, bring back what has lost its name, or remove
    what has its successor: it would be in the way of the next."""
    old = output.with_name(f".{output.name}.replaced")
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(output)


@contextlib.contextmanager
def alone(output: Path, locks: Path) -> Iterator[None]:
    """Raise UsageError where another process converts into `output`."""
    from filelock import FileLock, Timeout

    locks.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    lock = FileLock(locks / f"convert--{digest}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"Another process is converting into {output}.", hint="Wait for it, or use --output."
        ) from None
    try:
        yield
    finally:
        lock.release()
