"""HTTP to a server: one connection an answer, so that a cancel can cut it at once."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from edgevlm import __version__
from edgevlm.engine.cancel import Cancel
from edgevlm.errors import CloudError, Interrupted, Offline, UsageError
from edgevlm.media.addresses import is_loopback
from edgevlm.remote.codes import error_of

# Reading may take as long as a server lets its clients wait in its queue.
_TIMEOUT = httpx.Timeout(10.0, read=600.0)
_LONGEST_LINE = 64 * 2**20
_LONGEST_ANSWER = 256 * 2**20
_DATA = "data: "


@dataclass(frozen=True, slots=True, repr=False)
class Server:
    """Where a server is and what opens it. Raises UsageError for a URL that can't be, and Offline
    for one beyond this device where the network is switched off."""

    url: str
    token: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host = parts.hostname or ""
            parts.port  # noqa: B018  raises for one that can't be
        except ValueError as error:
            raise _bad(self.url) from error
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise _bad(self.url)
        if parts.scheme == "http" and not _is_near(host):
            raise UsageError(
                f"{host} would be asked in the clear.", hint="Use https:// beyond your network."
            )
        if self.offline and not self.on_this_device:
            raise Offline(
                f"EDGEVLM_OFFLINE forbids asking {host}.", hint="Unset it, or run the model here."
            )

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    @property
    def on_this_device(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")

    def get(self, path: str) -> dict[str, Any]:
        """A JSON object. Raises CloudError, and the errors that the server tells."""
        with self._client() as client, _told(self.url):
            response = client.get(path)
            if response.status_code != 200:
                raise _error(response.status_code, response.content)
            return _object(response.content)

    def events(self, path: str, body: bytes, cancel: Cancel) -> Iterator[dict[str, Any]]:
        """Post JSON, and yield the objects of the answer's server-sent events.

        Raises Interrupted once `cancel` is set, CloudError where the server is not there, breaks
        off or talks nonsense, and the errors that it tells.
        """
        line = _Line()
        with cancel.calling(line.cut):
            try:
                with (
                    self._client() as client,
                    _told(self.url),
                    client.stream(
                        "POST",
                        path,
                        content=body,
                        headers={"Content-Type": "application/json"},
                        extensions={"trace": line.watch},
                    ) as response,
                ):
                    for event in _events(response):
                        cancel.check()
                        yield event
            except (CloudError, OSError):
                cancel.check()
                raise

    def _client(self) -> httpx.Client:
        headers = {"User-Agent": f"edgevlm/{__version__}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return httpx.Client(
            base_url=self.url.rstrip("/"),
            headers=headers,
            timeout=_TIMEOUT,
            trust_env=not self.on_this_device,
        )


class _Line:
    """The connection of one request, to be cut from another thread: closing a socket does not
    wake who reads from it, shutting it down does."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._cut = False

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._cut:
                self.cut()

    def cut(self) -> None:
        self._cut = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    if response.status_code != 200:
        raise _error(response.status_code, response.read())
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind != "text/event-stream":
        raise CloudError(f"The server answered {kind or 'nothing'}.", hint=_NOT_OURS)
    total = 0
    for text in response.iter_lines():
        total += len(text)
        if len(text) > _LONGEST_LINE or total > _LONGEST_ANSWER:
            raise CloudError("The server's answer does not end.", hint=_NOT_OURS)
        if not text.startswith(_DATA):
            continue
        if text == f"{_DATA}[DONE]":
            return
        event = _object(text[len(_DATA) :])
        if "error" in event:
            raise _error(200, json.dumps(event).encode())
        yield event
    raise CloudError("The server broke off amid an answer.", hint="Ask again.", retryable=True)


def _error(status: int, body: bytes) -> Exception:
    try:
        told = json.loads(body)["error"]
        code, message = told.get("code"), str(told["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message = None, f"The server answered HTTP {status}."
    if status in (401, 403) or code == "invalid_api_key":
        return CloudError(message, hint="Set EDGEVLM_SERVE_TOKEN to the token of that server.")
    kind = error_of(code if isinstance(code, str) else None, status)
    busy = status in (429, 503)
    return kind(message[:1000], hint="Try again later." if busy else None, retryable=busy)


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CloudError("The server answered what is not JSON.", hint=_NOT_OURS) from error
    if not isinstance(value, dict):
        raise CloudError("The server answered no JSON object.", hint=_NOT_OURS)
    return value


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """The one place where what the HTTP client raises becomes an error of ours."""
    try:
        yield
    except Interrupted:
        raise
    except httpx.TimeoutException as error:
        raise CloudError(
            f"{url} does not answer.", hint="Is it running, and free?", retryable=True
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise CloudError(
            f"Can't reach {url}: {error}.",
            hint="Start it with `edgevlm serve`, and check the address.",
            retryable=True,
        ) from error


_NOT_OURS = "Is it `edgevlm serve` of this version?"


def _bad(url: str) -> UsageError:
    return UsageError(f"{url!r} is no server's address.", hint="Such as http://127.0.0.1:8642.")


def _is_near(host: str) -> bool:
    """On this device or its own network, as far as its name tells."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal"))
    return address.is_private or address.is_link_local
