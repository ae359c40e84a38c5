"""Small JSON files of the home folder, and the databases beside them: several processes read
and write them at once, and none ever sees half a file."""

from __future__ import annotations

import json
import sqlite3
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
        with FileLock(path.with_name(f".{path.name}.lock")):
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


def connect(path: Path, schema: str, *, synchronous: str) -> sqlite3.Connection:
    """Open a database, in which `schema` is made where it is new. Threads may share it under
    a lock. `synchronous` is FULL for what must outlive a power cut. Raises sqlite3.Error, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A change that is whole or not there; other processes wait for it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
