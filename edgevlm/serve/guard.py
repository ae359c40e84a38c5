"""Who may ask, and how much they may send: what every request passes before anything reads it.

A page of another origin must not reach a server on this device, by a form, a script or a name
that it has pointed here (DNS rebinding): hence the checks of Host, Origin and content type
beside the token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgevlm.errors import UsageError
from edgevlm.remote.access import AccessToken
from edgevlm.serve.errors import ApiError

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z._-]+))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rf"https?://{_HOST.pattern}")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# No token: they tell nothing but that a server is there.
OPEN = frozenset({"/healthz", "/readyz"})


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_body_bytes` of a request, all of which must have come within `body_s` seconds."""

    max_body_bytes: int = 32 * 2**20
    body_s: float = 60.0


class Guard:
    """ASGI middleware. `hosts` are names this server goes by, without a port; `origins` are
    `scheme://host[:port]` of pages that may ask beside its own."""

    def __init__(
        self,
        app: ASGIApp,
        token: AccessToken,
        hosts: Collection[str] = LOOPBACK,
        origins: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = {host.lower() for host in hosts}
        self._origins = allowed_origins(origins)
        self._limits = limits or Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            scope["edgevlm.record"].failed(error)
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive, self._limits), send)

    def _check(self, scope: Scope) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        self._check_host(headers)
        self._check_origin(headers)
        if path not in OPEN and not _of_page(path) and not _preflight(method, headers):
            self._check_token(headers)
        if method == "POST" and path != "/page":
            _check_json(headers)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.max_body_bytes:
            raise too_large(self._limits.max_body_bytes)

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        if len(given) != 1 or _host_name(given[0]) not in self._hosts:
            raise ApiError(
                403,
                "This server does not go by that name. Start it with --allow-host NAME.",
                code="bad_host",
            )

    def _check_origin(self, headers: Headers) -> None:
        given = headers.getlist("origin")
        own = {f"{scheme}://{headers['host'].lower()}" for scheme in ("http", "https")}
        if given and (len(given) > 1 or given[0].lower() not in self._origins | own):
            raise ApiError(
                403,
                "Pages of that origin may not ask. Start it with --allow-origin URL.",
                code="bad_origin",
            )

    def _check_token(self, headers: Headers) -> None:
        sent = headers.getlist("authorization")
        scheme, _, given = (sent[0] if len(sent) == 1 else "").partition(" ")
        if scheme.lower() != "bearer" or not self._token.matches(given.strip()):
            raise ApiError(
                401,
                "The token is missing or wrong. Send `Authorization: Bearer TOKEN`.",
                code="invalid_api_key",
            )


class _Bounded:
    """Receives a body up to its limits of size and time."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._left = limits.max_body_bytes
        self._whole = False
        self._end: float | None = None

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is that the client leaves, in its own time
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._end is None:
            self._end = now + self._limits.body_s
        try:
            message = await asyncio.wait_for(self._receive(), self._end - now)
        except asyncio.TimeoutError as error:
            raise ApiError(408, "The body did not come in time. Send it faster.") from error
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._left < 0:
                raise too_large(self._limits.max_body_bytes)
        return message


def too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request is larger than {limit // 2**20} MiB. Send fewer or smaller pictures.",
        code="request_too_large",
    )


def allowed_origins(given: Collection[str]) -> frozenset[str]:
    """As browsers write them. Raises UsageError for what is no origin, `*` and `null` too."""
    origins = frozenset(origin.lower().rstrip("/") for origin in given)
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise UsageError(
                f"{origin!r} is no origin of pages.", hint="Such as https://notes.example:8443."
            )
    return origins


def _host_name(host: str) -> str:
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2]) if found else ""


def _of_page(path: str) -> bool:
    """Guarded by a pass of their own (see `page.py`), all but `/page`, which gives it."""
    return path == "/" or path.startswith("/page/")


def _check_json(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The body is not JSON. Send `Content-Type: application/json`.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "The body is compressed. Send it as it is.")


def _preflight(method: str, headers: Headers) -> bool:
    """What a browser asks of itself before a page of an allowed origin may."""
    return method == "OPTIONS" and "access-control-request-method" in headers
