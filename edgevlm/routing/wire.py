"""What goes over the network to a provider, and what may come back.

The `openai` client writes the request and reads the answer; between it and the network stands
`Wire`, which holds the key (the client never sees it), sends no header that tells of this
device, follows no redirect, and ends an answer that is too long or comes too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import httpcore
import httpx

from edgevlm import __version__
from edgevlm.engine.cancel import Cancel
from edgevlm.errors import CloudAnswerBroken, CloudUnavailable, EdgeVLMError, Interrupted
from edgevlm.media.describe import shown
from edgevlm.routing.keys import Key
from edgevlm.routing.line import Deadline, Line
from edgevlm.routing.provider import Provider
from edgevlm.routing.rejected import Rejected

_MOST_ERROR_BYTES = 64 * 1024
_STREAM = "text/event-stream"
_TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class Wire(httpx.BaseTransport):
    """One request over one connection. `sent` says whether any of its body may have left, and
    `error` is what it raised: some versions of the client put another in its place.

    Raises Rejected, CloudUnavailable, CloudAnswerBroken, Interrupted.
    """

    def __init__(
        self, provider: Provider, key: Key | None, deadline: Deadline, cancel: Cancel
    ) -> None:
        self._provider = provider
        self._key = key
        self._deadline = deadline
        self._line = Line(deadline, cancel)
        self._open = contextlib.ExitStack()
        self.sent = False
        self.error: EdgeVLMError | Rejected | None = None

    def __enter__(self) -> Wire:
        self._open.enter_context(self._line)
        return self

    def close(self) -> None:
        self._open.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self.noting_errors():
            return self._handle(request)

    @contextlib.contextmanager
    def noting_errors(self) -> Iterator[None]:
        try:
            yield
        except (EdgeVLMError, Rejected) as error:
            self.error = error
            raise

    def _handle(self, request: httpx.Request) -> httpx.Response:
        pool = self._open.enter_context(
            httpcore.ConnectionPool(
                ssl_context=_ssl_context(*map(os.environ.get, _TRUST)), network_backend=self._line
            )
        )
        try:
            response = pool.handle_request(self._translated(request))
            headers = {
                k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers
            }
            self._check(response, headers)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise self.failure(error) from error
        except (OSError, ValueError) as error:  # of TLS, and of addresses that can't be
            raise self.failure(error) from error
        return httpx.Response(response.status, headers=headers, stream=_Body(self, response))

    def failure(self, error: Exception) -> EdgeVLMError:
        """What a broken connection means here."""
        called = self._provider.called
        if self._line.ended == "cancelled":
            return Interrupted("Stopped.")
        if self._line.ended == "deadline":
            return CloudUnavailable(
                f"{called} took longer than {self._deadline.seconds:g} s.",
                hint="Ask again later, or give it longer: `edgevlm cloud set --timeout SECONDS`.",
            )
        if self.sent:
            return CloudUnavailable(
                f"The connection to {called} broke off.", hint="Ask again; check your connection."
            )
        if isinstance(_root(error), ssl.SSLCertVerificationError):
            return CloudUnavailable(
                f"The certificate of {self._provider.host} is not trusted, and nothing was sent.",
                hint="Check the base URL. SSL_CERT_FILE names the certificates that you trust.",
                retryable=False,
            )
        return CloudUnavailable(
            f"{self._provider.host} can't be reached.",
            hint="Check your connection, and the base URL: `edgevlm cloud status`.",
        )

    def check_ended(self) -> None:
        """Raise what `failure` makes of it where the line was ended from this side."""
        if self._line.ended is not None:
            raise self.failure(EOFError())

    def check_size(self, size: int) -> None:
        if size > self._provider.limits.answer_bytes:
            raise CloudAnswerBroken(
                f"{self._provider.called} sent more than an answer can be ({size} bytes so far)."
            )

    def _translated(self, request: httpx.Request) -> httpcore.Request:
        """The request with the headers that it needs, and none that say who we are."""
        headers = [
            (b"Host", request.url.netloc),
            (b"User-Agent", f"edgevlm/{__version__}".encode()),
            (b"Accept", _STREAM.encode()),
            # Compressed answers could swell on the way in.
            (b"Accept-Encoding", b"identity"),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", request.headers["content-length"].encode()),
            (b"Connection", b"close"),
        ]
        if self._key is not None:
            headers.append((b"Authorization", b"Bearer " + self._key.reveal().encode("ascii")))
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        content = request.read()
        return httpcore.Request(
            request.method, url, headers=headers, content=content, extensions={"trace": self._trace}
        )

    def _trace(self, event: str, _info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_body.started"):
            self.sent = True

    def _check(self, response: httpcore.Response, headers: Mapping[str, str]) -> None:
        called, status = self._provider.called, response.status
        if 300 <= status < 400:
            raise CloudAnswerBroken(
                f"{called} redirects to {_place(headers)}, where nothing is sent.",
                hint="If that is its address, set it: `edgevlm cloud set --base-url URL`.",
            )
        if status != 200:
            raise Rejected(status, headers, self._message(response))
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise CloudAnswerBroken(f"{called} answered compressed, though asked not to.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _STREAM:
            raise CloudAnswerBroken(
                f"{called} answered with {shown(headers.get('content-type', 'nothing'))},"
                f" not with a stream of events.",
                hint="Check that the base URL is that of an OpenAI-compatible API.",
            )

    def _message(self, response: httpcore.Response) -> str:
        """What the provider says, in one line. Reads no more of it than can be shown."""
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > _MOST_ERROR_BYTES:
                break
        text = bytes(body[:_MOST_ERROR_BYTES]).decode("utf-8", "replace")
        with contextlib.suppress(ValueError, RecursionError):
            text = _said(json.loads(text)) or text
        return shown(" ".join((self._key.hide(text) if self._key else text).split()), 200)


class _Body(httpx.SyncByteStream):
    def __init__(self, wire: Wire, response: httpcore.Response) -> None:
        self._wire = wire
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with self._wire.noting_errors():
            yield from self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self._response.iter_stream():
                size += len(chunk)
                self._wire.check_size(size)
                yield chunk
            # A body without a length looks complete when its connection is shut down.
            self._wire.check_ended()
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise self._wire.failure(error) from error

    def close(self) -> None:
        self._wire.close()


def _said(document: Any) -> str | None:
    """The message of an error in OpenAI's form, or in one of those that resemble it."""
    if isinstance(document, list) and document:
        document = document[0]
    for name in ("error", "message", "detail"):
        if isinstance(document, dict) and document.get(name):
            document = document[name]
    return document if isinstance(document, str) else None


def _place(headers: Mapping[str, str]) -> str:
    """The host that a redirect leads to, without what may be secret in the rest."""
    try:
        host = httpx.URL(headers.get("location", "")).host
    except (httpx.InvalidURL, ValueError):
        host = ""
    return shown(host) or "another address"


@lru_cache(maxsize=1)
def _ssl_context(*_trusted: str | None) -> ssl.SSLContext:
    """Made once for what `_TRUST` says, since reading all certificates takes long."""
    return httpx.create_ssl_context()


def _root(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
