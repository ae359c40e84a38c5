"""One file on its way in: resumed where it stopped, hashed as it comes, trusted at the end."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgevlm.errors import ModelCorrupt

_CHUNK = 2**20


# Of a model's file whose size nobody has told: more than any device here could hold.
_LARGEST = 2**36


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must turn out to be; None is not known. `git_sha1` is git's blob id, and
    `most` what a file of unknown size may come to, in bytes."""

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    most: int = _LARGEST


@dataclass(frozen=True, slots=True)
class Received:
    size: int
    sha256: str


def hash_file(path: Path) -> Received:
    """Read a whole file. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Received(size, digest.hexdigest())


class Receiver:
    """Writes `<path>.part`; `finish` checks it and gives it its name.

    What an earlier attempt left is read first, so that `size` is where to go on.
    """

    def __init__(self, path: Path, expected: Expected, advance: Callable[[int], None]) -> None:
        self.path = path
        self.expected = expected
        self.resumed = False
        self._advance = advance
        self._file: BinaryIO | None = None
        self._begin()

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def complete(self) -> bool:
        return self.size == self.expected.size

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block `write` and `restart` work; what was written outlives it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.partial.open("ab")
        try:
            self._recall()
            yield
        finally:
            self._file.close()
            self._file = None

    def write(self, chunk: bytes) -> None:
        """Append. Raises ModelCorrupt when more comes than was announced, and OSError."""
        assert self._file is not None
        announced = self.expected.size
        most = self.expected.most if announced is None else announced
        if self.size + len(chunk) > most:
            self.discard()
            what = "may have" if announced is None else "should have"
            raise ModelCorrupt(
                f"{self.path.name} is larger than the {most} bytes it {what}.",
                hint="Its source may have changed; try again later.",
            )
        self._file.write(chunk)
        self._hash(chunk)

    def restart(self) -> None:
        """Forget what is there."""
        self.discard()
        # A new file: the old one may be another version's as well, by a hard link.
        self._file = self.partial.open("ab")
        self._advance(-self.size)
        self._begin()

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def finish(self) -> Received:
        """Check size and hashes. Raises ModelCorrupt, and the bad file is gone."""
        received = Received(self.size, self._sha256.hexdigest())
        wrong = self._wrong(received)
        if wrong is not None:
            self.discard()
            raise ModelCorrupt(
                f"{self.path.name} did not arrive as it should: {wrong}.",
                hint="Try again; if it happens again, its source has changed or is damaged.",
                retryable=True,
            )
        self.partial.replace(self.path)
        return received

    def _begin(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        header = f"blob {self.expected.size}\0".encode()
        self._git_sha1 = hashlib.sha1(header, usedforsecurity=False)

    def _recall(self) -> None:
        if self.size:
            return
        with self.partial.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self._hash(chunk)
        self.resumed = self.size > 0
        if self.expected.size is not None and self.size > self.expected.size:
            self.restart()

    def _hash(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self.expected.git_sha1 is not None:
            self._git_sha1.update(chunk)
        self.size += len(chunk)
        self._advance(len(chunk))

    def _wrong(self, received: Received) -> str | None:
        wanted = self.expected
        if wanted.size is not None and received.size != wanted.size:
            return f"{received.size} bytes instead of {wanted.size}"
        if wanted.sha256 is not None and received.sha256 != wanted.sha256:
            return f"its SHA-256 is {received.sha256[:16]}..., not {wanted.sha256[:16]}..."
        if wanted.git_sha1 is not None and self._git_sha1.hexdigest() != wanted.git_sha1:
            return "its contents are not those that the hub announced"
        return None
