"""The answer cache: what was asked before is answered at once, and never wrongly.

An entry is sealed with a SHA-256 over its key and its contents, which is checked before it is
believed: SQLite itself would not notice a changed byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
from dataclasses import replace

from edgevlm.cache.asked import Asked
from edgevlm.cache.database import WAIT_MS, CacheStats, Database, transaction
from edgevlm.cache.record import read, written
from edgevlm.cache.sketch import Sketch
from edgevlm.errors import DeviceError
from edgevlm.messages import Reply
from edgevlm.settings import Settings

MOST_ENTRIES = 10_000
_MOST_ENTRY_BYTES = 4 * 2**20
# What a row costs beside its contents: key, digest and its place in three indices.
_ROW_BYTES = 300
_MOST_CANDIDATES = 8
_NOT_SAID = " about a picture that can't be told from this one"

_log = logging.getLogger("edgevlm")


class AnswerCache:
    """Answers by what was `Asked`, in `settings.home`, up to `settings.cache_bytes`.

    Nothing is opened before the first question. `get` and `put` never raise: a disk that is full
    or forbids it means no cache. Safe for threads, for other processes, and after a fork.
    """

    def __init__(self, settings: Settings) -> None:
        self.mode = settings.cache
        self.near = settings.cache == "near"
        self.limit_bytes = settings.cache_bytes
        self.database = Database(settings.home / "cache" / "answers")

    def get(self, asked: Asked) -> Reply | None:
        """The answer that the same question got, with the route `cache`; None where there is none.

        In near mode also that of a question about a picture that can't be told from this one.
        Its timings and memory are the caller's to fill in, and `parsed` the schema's to read.
        """
        if self.mode == "off" or not asked.repeatable:
            return None
        try:
            found = self.database.run(lambda connection: _exact(connection, asked.key))
            if found is None and self.near and asked.frame is not None:
                found = self.database.run(lambda connection: _near(connection, asked))
        except DeviceError as error:
            _log.info("No cached answer: %s", error)
            return None
        return found

    def put(self, asked: Asked, reply: Reply) -> bool:
        """Keep an answer that the model has just given; returns whether it was.

        One that was cut off, came from the cache, doesn't fit its schema or might be another next
        time is not.
        """
        if self.mode == "off" or not _lasting(asked, reply):
            return False
        value = written(reply)
        sketch = asked.sketch.packed() if self.near and asked.sketch is not None else None
        size = len(value) + len(sketch or b"") + _ROW_BYTES
        if size > min(_MOST_ENTRY_BYTES, self.limit_bytes):
            return False
        frame = asked.frame if sketch is not None else None
        seal = _digest(asked.key, frame, sketch) if frame and sketch else None
        row = (asked.key, _digest(asked.key, value), size, value, frame, seal, sketch)

        def keep(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute(_INSERT, row)
                _forget_oldest(connection, self.limit_bytes)

        try:
            self.database.run(keep)
        except DeviceError as error:
            _log.info("The answer isn't kept: %s", error)
            return False
        return True

    def stats(self) -> CacheStats:
        """What there is. Raises DeviceError."""
        files = self.database.files()
        entries, size, hits = self.database.run(_count) if files else (0, 0, 0)
        files = self.database.files()
        return CacheStats(entries, size, hits, self.database.file_bytes(), max(len(files) - 1, 0))

    def clear(self) -> int:
        """Forget all answers, so that none can be read from the disk; returns how many there were.

        Raises DeviceError, also where another process reads or writes all the time.
        """
        if not self.database.files():
            return 0
        removed = self.database.run(_clear)
        self.database.remove_set_aside()
        return removed

    def close(self) -> None:
        """Let the file go; the next question opens it again."""
        self.database.close()


_INSERT = (
    "INSERT OR REPLACE INTO answers (key, digest, used, hits, size, value, frame, seal, sketch)"
    " VALUES (?1, ?2, (SELECT coalesce(max(used), 0) + 1 FROM answers), 0, ?3, ?4, ?5, ?6, ?7)"
)
_TOUCH = (
    "UPDATE answers SET used = (SELECT coalesce(max(used), 0) + 1 FROM answers), hits = hits + 1"
    " WHERE key = ?"
)
_TOTAL = "SELECT count(*), CAST(total(size) AS INTEGER) FROM answers"
_HITS = "SELECT CAST(total(hits) AS INTEGER) FROM answers"
# All but the newest that fit both limits, counted from the newest on.
_FORGET = (
    "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM (SELECT rowid,"
    " sum(size) OVER newest AS bytes, row_number() OVER newest AS entries FROM answers"
    " WINDOW newest AS (ORDER BY used DESC, rowid)) WHERE bytes > ? OR entries > ?)"
)


def _lasting(asked: Asked, reply: Reply) -> bool:
    whole = reply.finish_reason != "cancelled" and (
        not reply.structured or reply.parsed is not None
    )
    return whole and asked.repeatable and reply.route.decision != "cache"


def _exact(connection: sqlite3.Connection, key: bytes) -> Reply | None:
    row = connection.execute("SELECT digest, value FROM answers WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    digest, value = row
    if not isinstance(value, bytes) or digest != _digest(key, value):
        raise sqlite3.DatabaseError("an answer is not what it was")
    reply = _read(value)
    _touch(connection, key)
    return reply


def _near(connection: sqlite3.Connection, asked: Asked) -> Reply | None:
    rows = connection.execute(
        "SELECT key, seal, sketch FROM answers WHERE frame = ? ORDER BY used DESC LIMIT ?",
        (asked.frame, _MOST_CANDIDATES),
    )
    for key, seal, sketch in rows.fetchall():
        whole = isinstance(key, bytes) and isinstance(sketch, bytes)
        if not whole or seal != _digest(key, asked.frame, sketch):
            raise sqlite3.DatabaseError("a sketch is not what it was")
        if not _is_near(sketch, asked):
            continue
        reply = _exact(connection, key)
        if reply is not None:
            reason = reply.route.reason + _NOT_SAID
            return replace(reply, route=replace(reply.route, reason=reason))
    return None


def _is_near(sketch: bytes, asked: Asked) -> bool:
    try:
        return asked.sketch is not None and Sketch.unpacked(sketch).near(asked.sketch)
    except ValueError as error:
        raise sqlite3.DatabaseError("a sketch isn't one of ours") from error


def _read(value: bytes) -> Reply:
    try:
        return read(value)
    except (ValueError, RecursionError) as error:  # it is sealed, so another program wrote it
        raise sqlite3.DatabaseError("an answer isn't one of ours") from error


def _touch(connection: sqlite3.Connection, key: bytes) -> None:
    """Count the hit, unless somebody is writing: an answer doesn't wait for that."""
    connection.execute("PRAGMA busy_timeout = 0")
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute(_TOUCH, (key,))
    connection.execute(f"PRAGMA busy_timeout = {WAIT_MS}")


def _forget_oldest(connection: sqlite3.Connection, limit_bytes: int) -> None:
    entries, size = connection.execute(_TOTAL).fetchone()
    if entries > MOST_ENTRIES or size > limit_bytes:
        connection.execute(_FORGET, (limit_bytes, MOST_ENTRIES))


def _count(connection: sqlite3.Connection) -> tuple[int, int, int]:
    entries, size = connection.execute(_TOTAL).fetchone()
    (hits,) = connection.execute(_HITS).fetchone()
    return entries, size, hits


def _clear(connection: sqlite3.Connection) -> int:
    with transaction(connection):
        removed = connection.execute("DELETE FROM answers").rowcount
    connection.execute("VACUUM")
    busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("database is locked")
    return removed


def _digest(*parts: bytes | None) -> bytes:
    """SHA-256 of the parts, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part or b"").to_bytes(8, "big"))
        digest.update(part or b"")
    return digest.digest()
