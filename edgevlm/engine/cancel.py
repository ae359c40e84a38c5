"""Stopping work from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgevlm.errors import Interrupted


class Cancel:
    """A flag that any thread may set once; running work polls it or is told.

    A runtime that must be told (ONNX Runtime's `RunOptions.terminate`) registers
    a callback for the length of its call; one that polls reads `is_set`.
    """

    def __init__(self) -> None:
        # Reentrant, since a signal handler may call `set` on a thread that holds it.
        self._lock = threading.RLock()
        self._set = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._lock:
            self._set = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raise Interrupted if the flag is set."""
        if self._set:
            raise Interrupted("Stopped.")

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Within the block, `set` calls `callback`, at once if the flag is set already."""
        with self._lock:
            self._callbacks.append(callback)
            already = self._set
        if already:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
