"""Which answer came from where, and what left the device for it: `<home>/routing/log.sqlite3`.

No question and no answer is in it, unless its owner asks for that (`log_prompts`). It holds
the last `_MOST` answers, and sums by day of all.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgevlm.messages import Reply
from edgevlm.routing.call import Receipt
from edgevlm.routing.ledger import utc_now
from edgevlm.routing.state import Database

FILE = "routing/log.sqlite3"
_MOST = 10_000
_logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, entry TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS days (
    day TEXT NOT NULL, decision TEXT NOT NULL, answers INTEGER NOT NULL, bytes INTEGER NOT NULL,
    usd REAL NOT NULL, PRIMARY KEY (day, decision)
);
"""
_COUNT = """
INSERT INTO days VALUES (?, ?, 1, ?, ?) ON CONFLICT (day, decision) DO UPDATE SET
    answers = answers + 1, bytes = bytes + excluded.bytes, usd = usd + excluded.usd
"""


@dataclass(frozen=True, slots=True)
class Share:
    """How many answers came from one place, and what was sent and spent for them."""

    answers: int = 0
    bytes: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """`local` and `cache` may have sent something too, where the cloud was asked and failed."""

    local: Share
    cache: Share
    cloud: Share

    @property
    def answers(self) -> int:
        return self.local.answers + self.cache.answers + self.cloud.answers

    @property
    def saved_usd(self) -> float | None:
        """What the cloud would have taken for the answers that it didn't give, at the mean of
        those that it gave. None where it gave none."""
        spared, given = self.local.answers + self.cache.answers, self.cloud.answers
        return spared * self.cloud.usd / given if given else None

    @property
    def saved_bytes(self) -> int | None:
        """The same for what would have been sent."""
        spared, given = self.local.answers + self.cache.answers, self.cloud.answers
        return round(spared * self.cloud.bytes / given) if given else None


class RouteLog:
    """Several processes and threads may write one. No error of it ever costs an answer."""

    def __init__(
        self, home: Path, *, prompts: bool = False, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._database = Database(home / FILE, _SCHEMA, synchronous="NORMAL")
        self._prompts = prompts
        self._now = now

    def add(self, reply: Reply, *, receipt: Receipt | None = None, question: str = "") -> None:
        """Note an answer; `receipt` where the cloud was asked, whether or not it answered."""
        at = self._now().astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        entry = _entry(reply, receipt)
        if self._prompts:
            entry |= {"question": question, "answer": reply.text}
        sent, decision = reply.route.sent, reply.route.decision
        size = sent.text_bytes + sent.image_bytes + sent.embedding_bytes
        try:
            with self._database.change() as database:
                row = database.execute(
                    "INSERT INTO answers (at, entry) VALUES (?, ?)",
                    (at, json.dumps(entry, ensure_ascii=False)),
                )
                database.execute(
                    "DELETE FROM answers WHERE id <= ?", ((row.lastrowid or 0) - _MOST,)
                )
                database.execute(_COUNT, (at[:10], decision, size, reply.route.cost_usd or 0.0))
        except (sqlite3.Error, OSError) as error:
            _logger.warning("The route log %s can't be written: %s", self._database.path, error)

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest first. Raises sqlite3.Error, OSError."""
        if not self._database.path.exists():
            return []
        with self._database.open() as database:
            rows = database.execute(
                "SELECT at, entry FROM answers ORDER BY id DESC LIMIT ?", (count,)
            ).fetchall()
        return [{"at": at, **json.loads(entry)} for at, entry in rows]

    def totals(self, since: str = "") -> Totals:
        """Of all answers, or those from the UTC day `since` ("2026-12-01") on."""
        shares = {}
        if self._database.path.exists():
            with self._database.open() as database:
                rows = database.execute(
                    "SELECT decision, sum(answers), sum(bytes), sum(usd) FROM days"
                    " WHERE day >= ? GROUP BY decision",
                    (since,),
                ).fetchall()
            shares = {decision: Share(*sums) for decision, *sums in rows}
        return Totals(*(shares.get(name, Share()) for name in ("local", "cache", "cloud")))

    def clear(self) -> None:
        """Forget every answer and every sum."""
        if self._database.path.exists():
            with self._database.change() as database:
                database.execute("DELETE FROM answers")
                database.execute("DELETE FROM days")

    def close(self) -> None:
        self._database.close()


def _entry(reply: Reply, receipt: Receipt | None) -> dict[str, Any]:
    entry = {
        "model": reply.model,
        "adapter": [adapter.name for adapter in reply.adapter],
        "confidence": reply.confidence,
        "unsure": reply.unsure,
        "finish_reason": reply.finish_reason,
        "total_ms": round(reply.timings.total_ms, 3),
        **asdict(reply.route),
    }
    if receipt is not None:
        entry["cloud"] = asdict(receipt)
    return entry
