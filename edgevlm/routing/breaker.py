"""A circuit breaker (Nygard, "Release It!", 2007): a provider that fails again and again is left
alone for a while, so that nobody waits for it at every question."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES = 5
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 300.0


class Breaker:
    """Opens after `FAILURES` in a row. After a pause one call may try; each such try that
    fails doubles the pause, and any success closes it.

    `clock` never goes back, as `time.monotonic`. Any thread may call.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = FIRST_PAUSE_S
        self._open_until: float | None = None

    def wait_s(self) -> float:
        """For how many seconds nothing is to be tried: 0 where it may be."""
        with self._lock:
            return self._left()

    def enter(self) -> float:
        """`wait_s`, before a try; where it is 0, others wait until this one has ended."""
        with self._lock:
            left = self._left()
            if left == 0 and self._open_until is not None:
                self._open_until = self._clock() + self._pause
            return left

    def succeeded(self) -> None:
        with self._lock:
            self._failures, self._pause, self._open_until = 0, FIRST_PAUSE_S, None

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._open_until is not None:
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            if self._failures >= FAILURES:
                self._open_until = self._clock() + self._pause

    def _left(self) -> float:
        return 0.0 if self._open_until is None else max(self._open_until - self._clock(), 0.0)
