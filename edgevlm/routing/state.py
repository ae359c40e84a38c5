"""Small JSON files of the home folder, and the databases beside them: several processes read
and write them at once, and none ever sees half a file."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevlm.errors import CloudNotAllowed
from edgevlm.models.disk import disk_errors, write_atomically

_BUSY_S = 2.0  # of a database that another process writes to


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file, None where there is no file. Raises CloudNotAllowed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path) from error
    return value


def change_json(
    path: Path, change: Callable[[dict[str, Any] | None], dict[str, Any] | None]
) -> None:
    """Replace what the file holds by what `change` makes of it, whole or not at all; None is
    no file. Raises CloudNotAllowed, NoSpace, ModelUnavailable."""
    from filelock import FileLock

    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(path)):
            value = change(read_json(path))
            if value is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, json.dumps(value, indent=1))


def unreadable(path: Path) -> CloudNotAllowed:
    return CloudNotAllowed(
        f"{path} can't be read, and nothing is sent without it.",
        hint="Remove it, and say again what it held: `edgevlm cloud --help`.",
    )


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


class Database:
    """A database in which `schema` is made where it is new. Any thread may open it, in turn.

    `synchronous` is FULL for what must outlive a power cut, and else NORMAL.
    """

    def __init__(self, path: Path, schema: str, *, synchronous: str) -> None:
        self.path = path
        self._schema = schema
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """Each statement is a change of its own. Raises sqlite3.Error, OSError."""
        with self._lock:
            if self._connection is None or self._process != os.getpid():
                self._connection = self._connect()  # SQLite's can't be taken through a fork
                self._process = os.getpid()
                weakref.finalize(self, self._connection.close)
            yield self._connection

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """`open`, for statements that are done all or none; other processes wait for it."""
        with self.open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One at a time, since SQLite doesn't wait for another that changes the journal's mode.
        with FileLock(_lock_of(self.path)):
            return self._prepared()

    def _prepared(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.executescript(self._schema)
        except BaseException:
            connection.close()
            raise
        return connection
