"""The page at `/`: its files, and the pass that lets a browser have them.

A browser opens an address without a token. It gets the page that asks for one, which fetches a
pass with it: a cookie that opens these files and nothing else, since cookies go to every port of
this device. What the page then asks, it asks with the token.
"""

from __future__ import annotations

import secrets
from hmac import compare_digest
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_COOKIE = "edgevlm_page"
_FOLDER = files("edgevlm.serve") / "page"
_KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_NAMES = frozenset(
    file.name for file in _FOLDER.iterdir() if file.name.rpartition(".")[2] in _KINDS
)
# What the page that asks for a token is made of.
_OPEN = frozenset({"login.html", "login.js", "token.js", "style.css", "icon.svg"})
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Page:
    """The page's routes. Its pass is made anew whenever the server starts."""

    def __init__(self) -> None:
        self._pass = secrets.token_urlsafe(32)

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/", self._index, methods=["GET"]),
            Route("/page", self._let_in, methods=["POST"]),
            Route("/page/{name}", self._part, methods=["GET"]),
        ]

    async def _index(self, request: Request) -> Response:
        known = self._has_pass(request)
        return _file("index.html" if known else "login.html", 200 if known else 401)

    async def _part(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _NAMES:
            return Response(status_code=404)
        known = name in _OPEN or self._has_pass(request)
        return _file(name) if known else Response(status_code=401)

    async def _let_in(self, request: Request) -> Response:
        """Reached with the token alone, as every other route."""
        answer = Response(status_code=204)
        answer.set_cookie(_COOKIE, self._pass, httponly=True, samesite="strict", path="/")
        return answer

    def _has_pass(self, request: Request) -> bool:
        given = request.cookies.get(_COOKIE, "")
        return compare_digest(given.encode("utf-8", "replace"), self._pass.encode())


def _file(name: str, status: int = 200) -> Response:
    kind = _KINDS[name.rpartition(".")[2]]
    return Response((_FOLDER / name).read_bytes(), status, _HEADERS, media_type=kind)
