"""Pictures from `https://` URLs: no other scheme, no way into the local network.

A host name is looked up once, its addresses are checked, and the connection goes to
a checked address, so that a second answer of the name server can't redirect it;
certificate and SNI keep the name. One deadline covers lookup, redirects and body.
Proxies of the environment are not used: behind one, nothing could be checked.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import httpcore
import httpx

from edgevlm import __version__
from edgevlm.errors import MediaTooLarge, UnreadableMedia
from edgevlm.media.addresses import is_public
from edgevlm.media.describe import shown, url_shown
from edgevlm.media.limits import MediaLimits

_REDIRECTS = (301, 302, 303, 307, 308)
_BY_HAND = "Download it yourself and give the file."
_HEADERS = [
    (b"User-Agent", f"edgevlm/{__version__}".encode()),
    (b"Accept", b"image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, */*;q=0.1"),
    # Compressed answers could swell on the way in, and pictures gain nothing by it.
    (b"Accept-Encoding", b"identity"),
]


class Fetcher:
    """Downloads pictures. `may_connect` judges every address before it is connected to.

    Whoever changes `may_connect` opens the network around the device to URLs; the
    package never does, its tests do to reach a server of their own.
    """

    def __init__(
        self,
        may_connect: Callable[[str], bool] = is_public,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._may_connect = may_connect
        self._given_ssl_context = ssl_context

    def __call__(self, url: str, limits: MediaLimits) -> bytes:
        """The body at `url`. Raises UnreadableMedia, MediaTooLarge for bytes and time."""
        name = url_shown(url)
        if not limits.allow_network:
            raise UnreadableMedia(
                f"Can't fetch {name}: the network is switched off.",
                hint="Unset EDGEVLM_OFFLINE, or give a file.",
            )
        deadline = _Deadline(limits.timeout_s)
        place = _checked(httpx.URL(), url, name, limits)
        for _ in range(limits.max_redirects + 1):
            with _normalised(name, limits):
                answer = self._request(place, limits, deadline, name)
            if isinstance(answer, bytes):
                return answer
            place = _checked(place, answer, name, limits)
        raise UnreadableMedia(
            f"{name} redirects more than {limits.max_redirects} times.", hint=_BY_HAND
        )

    def _request(
        self, place: httpx.URL, limits: MediaLimits, deadline: _Deadline, name: str
    ) -> bytes | str:
        """The body, or the place it redirects to, which may be relative."""
        backend = _CheckedBackend(self._may_connect, deadline)
        url = httpcore.URL(
            scheme=b"https", host=place.raw_host, port=place.port, target=place.raw_path
        )
        headers = [(b"Host", place.netloc), *_HEADERS]
        with (
            httpcore.ConnectionPool(
                ssl_context=self._ssl_context, network_backend=backend, http1=True, http2=False
            ) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            found = {key.lower(): value for key, value in response.headers}
            if response.status in _REDIRECTS and b"location" in found:
                return found[b"location"].decode("latin-1")
            _check_answer(response.status, found, limits, name)
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                limits.check_bytes(len(body), name)
        return bytes(body)

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return self._given_ssl_context or httpcore.default_ssl_context()


fetch = Fetcher()


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left, above 0. Raises httpcore.ReadTimeout when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("deadline")
        return seconds


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to the addresses that were judged, and to no others."""

    def __init__(self, may_connect: Callable[[str], bool], deadline: _Deadline) -> None:
        self._may_connect = may_connect
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = [a for a in _resolve(host, port, self._deadline) if self._may_connect(a)]
        if not addresses:
            raise UnreadableMedia(
                f"{shown(host)} is not a public internet address, and others are not fetched from.",
                hint=_BY_HAND,
            )
        for position, address in enumerate(addresses):
            share = self._deadline.left() / (len(addresses) - position)
            try:
                stream = self._sockets.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(addresses) - 1:
                    raise
            else:
                return _TimedStream(stream, self._deadline)
        raise AssertionError("the last address returned or raised")


class _TimedStream(httpcore.NetworkStream):
    """A stream of which every operation ends at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int, deadline: _Deadline) -> list[str]:
    """The addresses of `host`, best first.

    In a thread, since a lookup takes no time limit; one that outlives it is left behind.
    """
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True, name="edgevlm-lookup").start()
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty as error:
        raise httpcore.ConnectTimeout("lookup") from error
    if isinstance(answer, Exception):
        raise UnreadableMedia(
            f"There is no host {shown(host)}, or no network.",
            hint="Check the URL and your connection.",
            retryable=True,
        ) from answer
    return answer


def _checked(base: httpx.URL, url: str, name: str, limits: MediaLimits) -> httpx.URL:
    try:
        place = base.join(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UnreadableMedia(f"{name} is not a URL.", hint="Check its spelling.") from error
    if place.scheme != "https":
        raise UnreadableMedia(
            f"{name} leads to {place.scheme}:, and only https: is fetched.", hint=_BY_HAND
        )
    if place.userinfo:
        raise UnreadableMedia(f"{name} holds a user name or password.", hint=_BY_HAND)
    if not place.host:
        raise UnreadableMedia(f"{name} names no host.", hint="Check its spelling.")
    if limits.hosts is not None and place.host.lower() not in limits.hosts:
        raise UnreadableMedia(
            f"{shown(place.host)} is not a host that pictures may come from.", hint=_BY_HAND
        )
    return place


def _check_answer(status: int, headers: dict[bytes, bytes], limits: MediaLimits, name: str) -> None:
    if status in (401, 403):
        raise UnreadableMedia(f"{name} refused us (HTTP {status}).", hint=_BY_HAND)
    if status != 200:
        raise UnreadableMedia(
            f"{name} answered HTTP {status}.",
            hint="Check the URL." if status < 500 else "Try again later.",
            retryable=status == 429 or status >= 500,
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnreadableMedia(f"{name} was sent compressed, though asked not to be.", hint=_BY_HAND)
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        limits.check_bytes(int(length), name)


@contextmanager
def _normalised(name: str, limits: MediaLimits) -> Iterator[None]:
    """The one place where what the HTTP client raises becomes a MediaError."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise MediaTooLarge(
            f"{name} took longer than {limits.timeout_s:g} s.", hint=_BY_HAND, retryable=True
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        untrusted = isinstance(_root(error), ssl.SSLCertVerificationError)
        raise UnreadableMedia(
            f"The certificate of {name} is not trusted."
            if untrusted
            else f"The connection to {name} failed.",
            hint=_BY_HAND if untrusted else "Check the URL and your connection.",
            retryable=not untrusted,
        ) from error


def _root(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
