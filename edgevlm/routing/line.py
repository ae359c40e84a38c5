"""The connection of one try, which ends at its deadline or at a cancel, whatever it is doing.

Timeouts of single reads can't promise that: a server that sends a byte a second keeps all of
them. So the socket itself is shut down, by a timer or by the thread that cancels, and whatever
waits for it comes back.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, TypeAlias

import httpcore

from edgevlm.engine.cancel import Cancel

Ended: TypeAlias = Literal["cancelled", "deadline"]


class Deadline:
    """A moment of `time.monotonic`, which no change of the wall clock moves."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(self._end - time.monotonic(), 0.0)


class Line(httpcore.NetworkBackend):
    """Use it as a context; `ended` then says who ended it, None where nobody did."""

    def __init__(self, deadline: Deadline, cancel: Cancel) -> None:
        self._lock = threading.RLock()  # a signal handler may cancel
        # A second handle on the connection: during a TLS handshake the first one belongs to it.
        self._handle: socket.socket | None = None
        self._connecting: queue.SimpleQueue[httpcore.NetworkStream | Exception | None]
        self._connecting = queue.SimpleQueue()
        self._timer = threading.Timer(deadline.left(), self._end, ["deadline"])
        self._timer.daemon = True
        self._cancelled = cancel.calling(lambda: self._end("cancelled"))
        self.ended: Ended | None = None
        self._closed = False

    def __enter__(self) -> Line:
        self._timer.start()
        self._cancelled.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._cancelled.__exit__(None, None, None)
        with self._lock:
            self._closed = True
            if self._handle is not None:
                self._handle.close()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect on another thread, since neither a lookup nor a connect can be interrupted.

        One that outlives the line is closed as soon as it stands.
        """

        def connect() -> None:
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    host, port, None, local_address, socket_options
                )
            except Exception as error:
                self._connecting.put(error)
            else:
                self._connected(stream)

        threading.Thread(target=connect, daemon=True, name="edgevlm-connect").start()
        outcome = self._connecting.get()
        if outcome is None:
            raise httpcore.ConnectTimeout("ended")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _connected(self, stream: httpcore.NetworkStream) -> None:
        with self._lock:
            if self.ended is None and not self._closed:
                self._handle = stream.get_extra_info("socket").dup()
                self._connecting.put(stream)
                return
        stream.close()

    def _end(self, why: Ended) -> None:
        with self._lock:
            if self.ended is not None or self._closed:
                return
            self.ended = why
            self._connecting.put(None)
            if self._handle is not None:
                with contextlib.suppress(OSError):  # the other side has left already
                    self._handle.shutdown(socket.SHUT_RDWR)
