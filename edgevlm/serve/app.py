"""The server as an ASGI application, of parts that each have a file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgevlm.errors import EdgeVLMError
from edgevlm.judge import Judge
from edgevlm.model import Model
from edgevlm.remote.access import AccessToken
from edgevlm.serve.completions import Completions
from edgevlm.serve.conversation import Reader
from edgevlm.serve.embeddings import ImageEmbeddings
from edgevlm.serve.engine import Engine
from edgevlm.serve.errors import ApiError, api_error
from edgevlm.serve.guard import LOOPBACK, Guard, Limits, allowed_origins
from edgevlm.serve.listing import Listing
from edgevlm.serve.log import Record
from edgevlm.serve.metrics import Metrics
from edgevlm.serve.page import Page
from edgevlm.serve.pictures import Pictures
from edgevlm.session import media_limits
from edgevlm.settings import Settings

_log = logging.getLogger("edgevlm.serve")


@dataclass(frozen=True, slots=True)
class Options:
    """How a server behaves. `parallel` answers take turns over `contexts` contexts and
    `queue_size` requests may wait; `seconds` is what an answer may take. `hosts` are names it
    goes by, `origins` of other pages that may ask, `media_hosts` where pictures may come from.
    Raises UsageError for an origin that can't be."""

    parallel: int = 4
    contexts: int = 8
    queue_size: int = 64
    seconds: float = 300.0
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    media_hosts: Collection[str] = ()
    log_prompts: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        allowed_origins(self.origins)


class Server:
    """A loaded model and the application that serves it. `close` ends its engine, not the model."""

    def __init__(
        self, model: Model, token: AccessToken, settings: Settings, options: Options | None = None
    ) -> None:
        self._options = options = options or Options()
        self.model = model
        self.engine = Engine(
            model,
            Judge(model, settings),
            parallel=options.parallel,
            contexts=options.contexts,
            queue_size=options.queue_size,
        )
        self._metrics = Metrics(self.engine)
        self._listing = Listing(model, settings)
        pictures = Pictures(media_limits(settings), options.media_hosts)
        reader = Reader(model, pictures)
        completions = Completions(
            self.engine, reader, self._listing, self._metrics, options.seconds
        )
        embeddings = ImageEmbeddings(reader, self._listing, options.seconds)
        self.routes = [
            Route("/healthz", self._health, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics_text, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._one_model, methods=["GET"]),
            Route("/v1/chat/completions", completions.__call__, methods=["POST"]),
            Route("/v1/embeddings/image", embeddings.__call__, methods=["POST"]),
            *Page().routes,
        ]
        paths = {route.endpoint: route.path for route in self.routes}
        self.app: ASGIApp = Starlette(
            routes=self.routes,
            middleware=[
                Middleware(_Recorded, self._metrics, paths, options.log_prompts),
                Middleware(
                    Guard,
                    token=token,
                    hosts={*LOOPBACK, *options.hosts},
                    origins=options.origins,
                    limits=options.limits,
                ),
                *_cross_origin(options.origins),
            ],
            exception_handlers={
                ApiError: _told,
                EdgeVLMError: _told,
                HTTPException: _told_by_routing,
                ClientDisconnect: _told_nobody,
            },
            lifespan=self._lifespan,
        )

    def drain(self) -> None:
        """Take no more requests; `/readyz` says so."""
        self.engine.drain()

    def close(self) -> None:
        self.engine.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.close()

    async def _health(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> JSONResponse:
        if self.engine.ready:
            return JSONResponse({"status": "ready", "model": self.model.name})
        return JSONResponse({"status": "ending"}, 503, {"Retry-After": "5"})

    async def _metrics_text(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, _: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": self._listing.all()})

    async def _one_model(self, request: Request) -> JSONResponse:
        return JSONResponse(self._listing.one(request.path_params["name"]))


class _Recorded:
    """ASGI middleware: a line in the log and a count for every request, whatever it meets."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: Mapping[Any, str], prompts: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._prompts = prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host, port = scope.get("client") or ("", 0)
        record = Record(scope["method"], scope["path"], f"{host}:{port}", prompts=self._prompts)
        scope["edgevlm.record"] = record

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            _log.exception("a request failed")
            told = api_error(error)
            record.failed(told)
            if not record.status:
                await JSONResponse(told.body, told.status)(scope, receive, watched)
        finally:
            # A route's path is its pattern, and paths that nobody serves are one: a client must
            # not make metrics grow.
            route = self._paths.get(scope.get("endpoint"), "other")
            self._metrics.requests.labels(route, str(record.status)).inc()
            record.write()


def _cross_origin(origins: Collection[str]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins(origins)),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    ]


async def _told(request: Request, error: Exception) -> JSONResponse:
    told = api_error(error)
    request.scope["edgevlm.record"].failed(told)
    return JSONResponse(told.body, told.status, told.headers)


async def _told_nobody(request: Request, _: Exception) -> JSONResponse:
    """The client left before its request was whole."""
    return await _told(request, ApiError(499, "The request broke off.", code="cancelled"))


async def _told_by_routing(request: Request, error: Exception) -> JSONResponse:
    """A path or a method that isn't there."""
    assert isinstance(error, HTTPException)
    return await _told(request, ApiError(error.status_code, f"{error.detail}. See the README."))
