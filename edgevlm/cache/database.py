"""The file that answers are in: one SQLite database in WAL mode that any number of threads and
processes read and write, and that is never repaired.

A file that is damaged, foreign or of another version stays where it is, and a new one with the
next number is begun beside it. So no file that somebody has open is renamed or replaced, which
would take its write-ahead log from under a process (https://sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgevlm.errors import DeviceError

_APPLICATION_ID = 0x45564C43  # "EVLC"
_VERSION = 1
_NAME = re.compile(r"answers-([1-9][0-9]{0,8})\.sqlite3")
_PARTS = ("", "-wal", "-shm", "-journal")
_TRIES = 3
_SCHEMA = {
    "answers": (
        "CREATE TABLE answers (key BLOB PRIMARY KEY NOT NULL, digest BLOB NOT NULL,"
        " used INTEGER NOT NULL, hits INTEGER NOT NULL, size INTEGER NOT NULL,"
        " value BLOB NOT NULL, frame BLOB, seal BLOB, sketch BLOB)"
    ),
    "answers_by_frame": (
        "CREATE INDEX answers_by_frame ON answers (frame, used) WHERE frame IS NOT NULL"
    ),
    "answers_by_use": "CREATE INDEX answers_by_use ON answers (used, size)",
}
_NOT_THE_FILE = (
    "locked",
    "locking",
    "unable to open",
    "I/O",
    "full",
    "memory",
    "denied",
    "interrupted",
)
_HINT = "Set EDGEVLM_CACHE=0 to do without, or EDGEVLM_HOME to a folder on another disk."
WAIT_MS = 1000

# A descriptor that is closed lets go of the locks that SQLite holds on the same file, so no
# thread may connect while another makes the file.
_connecting = threading.Lock()
# Connections from before a fork: closing them in the child would end the parent's log.
_of_parents: list[sqlite3.Connection] = []

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]


class _Unfit(Exception):
    """A file that isn't one of ours, or not of this version."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """`bytes` are of the answers, `file_bytes` of all files of the cache on the disk, those that
    were set aside among them; `hits` were on the answers that are still here."""

    entries: int
    bytes: int
    hits: int
    file_bytes: int
    set_aside: int


class Database:
    """The newest good file of a folder, opened when something needs it. Safe for threads, and
    after a fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._path: Path | None = None
        self._pid = os.getpid()

    def run(self, work: Work[Result]) -> Result:
        """What `work` returns, done again on a new file where the old one turns out to be damaged.

        Raises DeviceError where the disk is full, forbids it or fails, and where others hold
        the file for more than a second.
        """
        with self._lock, _as_device_error(self.folder):
            for _ in range(_TRIES):
                connection = self._connected()
                try:
                    return work(connection)
                except (sqlite3.DatabaseError, UnicodeError) as error:
                    assert self._path is not None
                    if not _tells_damage(error, self._path):
                        raise
                    self._close()
                    self._begin_next()
        raise DeviceError(f"The disk of {self.folder} damages files.", hint=_HINT)

    def close(self) -> None:
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._close()

    def files(self) -> list[Path]:
        """Those of the folder, the oldest first."""
        try:
            entries = [(_number(path), path) for path in self.folder.iterdir()]
        except OSError:
            return []
        return [path for number, path in sorted(entries) if number]

    def file_bytes(self) -> int:
        paths = [path.with_name(path.name + part) for path in self.files() for part in _PARTS]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def remove_set_aside(self) -> None:
        """Remove all files but the one in force. Raises DeviceError."""
        with _as_device_error(self.folder):
            _remove(self.files()[:-1])

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._pid != os.getpid():
            _of_parents.append(self._connection)
            self._connection = None
        if self._connection is not None:
            return self._connection
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pid = os.getpid()
        for _ in range(_TRIES):
            self._path = self._newest()
            try:
                with _connecting:
                    _make(self._path)
                    self._connection = _connect(self._path)
                return self._connection
            except _Unfit:
                self._begin_next()
        raise DeviceError(f"Others keep replacing the files of {self.folder}.", hint=_HINT)

    def _newest(self) -> Path:
        files = self.files()
        if not files:
            return _named(self.folder, 1)
        return files[-1] if files[-1].is_file() else _named(self.folder, _number(files[-1]) + 1)

    def _begin_next(self) -> None:
        """Have the next file be in force, and keep of the older ones the one before it."""
        assert self._path is not None
        number = _number(self._path) + 1
        with _connecting:
            _make(_named(self.folder, number))
        with contextlib.suppress(OSError):
            _remove([path for path in self.files() if _number(path) < number - 1])

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            connection.close()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Have the block be whole or not at all; it begins once nobody else writes."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        raise


def _connect(path: Path) -> sqlite3.Connection:
    """Raises _Unfit, and sqlite3.Error where the file can't be used now."""
    connection = sqlite3.connect(
        path, timeout=WAIT_MS / 1000, isolation_level=None, check_same_thread=False
    )
    # A damaged name is to be compared, not to be complained of.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA secure_delete = ON")
        if not _fits(connection):
            _create(connection)
        # Another process may be switching at this moment; the file remembers.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a power cut may cost the last answers and nothing else.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException as error:
        connection.close()
        if isinstance(error, Exception) and _tells_damage(error, path):
            raise _Unfit from error
        raise
    return connection


def _fits(connection: sqlite3.Connection) -> bool:
    """Whether the file is ours; False for one that is empty. Raises _Unfit."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    if (application, version, found) == (0, 0, {}):
        return False
    if (application, version, found) != (_APPLICATION_ID, _VERSION, _SCHEMA):
        raise _Unfit
    return True


def _create(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        if _fits(connection):  # another process was faster
            return
        for sql in _SCHEMA.values():
            connection.execute(sql)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def _tells_damage(error: Exception, path: Path) -> bool:
    """Whether the file is at fault, not the disk, its permissions or other processes.

    By SQLite's own words, since Python 3.10 doesn't tell its codes. Those may quote a damaged
    name, which Python can't read.
    """
    if isinstance(error, UnicodeError):
        return True
    if not isinstance(error, sqlite3.OperationalError):
        other = (sqlite3.ProgrammingError, sqlite3.NotSupportedError)
        return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, other)
    words = str(error)
    if "readonly" in words:  # a damaged header says so too
        return os.access(path, os.W_OK)
    return not any(outside in words for outside in _NOT_THE_FILE)


@contextlib.contextmanager
def _as_device_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, UnicodeError) as error:
        raise DeviceError(
            f"The cached answers in {folder} can't be used: {error}.", hint=_HINT, retryable=True
        ) from error


def _make(path: Path) -> None:
    """Have an empty file there that nobody but its owner reads, unless there is one."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return 0 if match is None else int(match[1])


def _named(folder: Path, number: int) -> Path:
    return folder / f"answers-{number}.sqlite3"


def _remove(paths: list[Path]) -> None:
    for path in paths:
        for part in _PARTS:
            path.with_name(path.name + part).unlink(missing_ok=True)
