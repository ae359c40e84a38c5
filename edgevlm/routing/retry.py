"""When a failed call is tried again, and after which pause."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

_FIRST_S = 0.5
_LONGEST_S = 8.0
# Statuses that say "later" (RFC 9110 and RFC 6585, and 529 of some providers).
RETRIED = frozenset({408, 429, 500, 502, 503, 504, 529})


def backoff(failures: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds before the next try, after so many failures (1 and more): exponential with
    "full jitter" (Brooker, "Exponential backoff and jitter", AWS, 2015), but never nothing."""
    most: float = min(_FIRST_S * 2.0 ** (failures - 1), _LONGEST_S)
    return most / 4 + draw() * most * 3 / 4


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for, in seconds; None where it says nothing we can read.

    A moment is taken against the answer's own `Date`, so that a wrong clock here doesn't matter.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _until(value, headers.get("date", ""))
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _until(moment: str, date: str) -> float | None:
    try:
        until = parsedate_to_datetime(moment)
    except (TypeError, ValueError):
        return None
    try:
        now = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        now = datetime.now(timezone.utc)
    # A date without its zone is read as UTC.
    until, now = (
        t if t.tzinfo is not None else t.replace(tzinfo=timezone.utc) for t in (until, now)
    )
    return max((until - now).total_seconds(), 0.0)
