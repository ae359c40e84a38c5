"""Requests byte by byte, as no client library would send them, to every route there is."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from serving import TOKEN, Running
from starlette.routing import Route

CHAT = "/v1/chat/completions"
HEALTH = ("/healthz", "/readyz")
# What a browser gets before it has the page's pass; all else of the page needs it.
BEFORE_THE_PASS = {
    "/page/icon.svg",
    "/page/login.js",
    "/page/style.css",
    "/page/token.js",
    "/page/login.html",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The first answer on a connection; `status` is 0 where it was closed without one."""

    status: int
    head: str
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """What a client of OpenAI's reads of it."""
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(error["message"]) < 600
        return error


def head(
    method: str = "POST",
    path: str = CHAT,
    *,
    host: str = "localhost",
    token: str | None = TOKEN,
    kind: str | None = "application/json",
    more: Iterable[str] = (),
) -> bytes:
    """The lines of a request up to its body. `more` are whole header lines."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"Content-Type: {kind}"] if kind else []
    return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")


def whole(body: bytes, **options: Any) -> bytes:
    """A request with its body and the body's length."""
    more = [*options.pop("more", ()), f"Content-Length: {len(body)}"]
    return head(more=more, **options) + body


def connection(url: str, timeout: float = 60) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout)


def exchange(url: str, data: bytes | Iterable[bytes], timeout: float = 60) -> Answer:
    """Send `data` as it is, and read what comes until the server closes the connection. A part
    that can't be sent since the server has hung up is no error."""
    with connection(url, timeout) as sock:
        try:
            for part in [data] if isinstance(data, bytes) else data:
                sock.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return received(sock)


def received(sock: socket.socket) -> Answer:
    """What comes until the server closes the connection."""
    data = bytearray()
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    top, _, body = bytes(data).partition(b"\r\n\r\n")
    text = top.decode("latin-1")
    status = int(text.split()[1]) if text.startswith("HTTP/1.1 ") else 0
    if "transfer-encoding: chunked" in text.lower():
        body = _unchunked(body)
    return Answer(status, text, body)


def _unchunked(body: bytes) -> bytes:
    parts = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts += rest[:length]
        body = rest[length + 2 :] if length else b""
    return bytes(parts)


def page_files() -> list[str]:
    return sorted(f"/page/{file.name}" for file in (files("edgevlm.serve") / "page").iterdir())


def paths_of(route: Route) -> list[str]:
    """What reaches a route; of the page's, all that there is."""
    if route.path == "/page/{name}":
        return page_files()
    return [re.sub(r"\{[^}]*\}", "edgevlm-tiny", route.path)]


def requests_of(server: Running) -> list[tuple[str, str]]:
    """Method and path of each route, as the application has them."""
    found = [
        (method, path)
        for route in server.server.routes
        for path in paths_of(route)
        for method in sorted(route.methods or ())
    ]
    assert len(found) > 10
    return found


def is_page(path: str) -> bool:
    """Guarded by the page's own pass."""
    return path == "/" or path.startswith("/page/")


def ask(server: Running, method: str, path: str, **options: Any) -> Answer:
    return exchange(server.url, head(method, path, more=options.pop("more", ()), **options))


def posted(server: Running, body: Any, path: str = CHAT) -> Answer:
    """JSON, or bytes as they are, to a route."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server.url, whole(data, path=path))


def refused_as_wrong(answer: Answer, *statuses: int) -> dict[str, Any]:
    """The error of an answer that says that the client is at fault."""
    assert answer.status in (statuses or (400,)), answer.body[:300]
    error = answer.error
    assert error["type"] == "invalid_request_error"
    return error
