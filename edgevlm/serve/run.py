"""Serving until told to stop: answers under way are finished, or stopped at the second Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from edgevlm.errors import UsageError
from edgevlm.serve.app import Server
from edgevlm.serve.log import Lines

# How long answers under way may go on after the first Ctrl-C or SIGTERM.
GRACE_S = 10
_KEEP_ALIVE_S = 30
_BACKLOG = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"Can't listen on {host}:{port}: {reason}.", hint="Give another --port."
        ) from error
    return sock


def serve(server: Server, sock: socket.socket, started: Callable[[], None]) -> None:
    """Serve on `sock`, and call `started` once requests are answered, until a signal."""
    Runner(server, started).run(sockets=[sock])


def log_to_stderr(*, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json=as_json))
    for name in ("edgevlm", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("edgevlm").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class Runner(uvicorn.Server):
    """uvicorn, which tells its server when it is to end, and its user what it waits for."""

    def __init__(self, server: Server, started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                server.app,
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                lifespan="on",
                http="h11",
                ws="none",
                # No proxy is in front: a client would say where it comes from.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._server = server
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's raising them anew at the end: to be stopped so is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        under_way = self._server.engine.active + self._server.engine.queued
        if not self.should_exit and under_way:
            print(f"Finishing {under_way} answers; again to stop at once.", file=sys.stderr)
        self._server.drain()
        super().handle_exit(sig, frame)
