"""URLs: a real TLS server on loopback, and everything a hostile one might try."""

from __future__ import annotations

import gzip
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from media_builders import encoded
from picture_server import Handler, PictureServer
from PIL import Image

from edgevlm.errors import MediaError, MediaTooLarge, UnreadableMedia
from edgevlm.media import MediaLimits, load_image
from edgevlm.media.addresses import is_public
from edgevlm.media.fetch import Fetcher
from edgevlm.media.source import load_image_with

PNG = encoded(Image.new("RGB", (5, 4), (1, 2, 3)), "PNG")
LOOPBACK = ("127.0.0.1", "::1")
LIMITS = MediaLimits(timeout_s=30)


@pytest.fixture
def fetcher(trusting: ssl.SSLContext) -> Fetcher:
    return Fetcher(LOOPBACK.__contains__, trusting)


def _redirect(to: str) -> Any:
    return lambda handler: handler.send(b"", 302, Location=to)


def test_a_picture_from_a_url(server: PictureServer, fetcher: Fetcher) -> None:
    server.answers["/cat"] = lambda h: h.send(PNG, Content_Type="text/plain")
    pixels = load_image_with(fetcher, server.url("/cat?size=big"), LIMITS)
    assert pixels.shape == (4, 5, 3)
    path, headers = server.seen[0]
    assert path == "/cat?size=big"
    assert headers["Host"] == f"localhost:{server.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("edgevlm/")


def test_what_is_no_picture_is_named(server: PictureServer, fetcher: Fetcher) -> None:
    server.answers["/cat.jpg"] = lambda h: h.send(
        b"<!DOCTYPE html><p>Log in", Content_Type="image/jpeg"
    )
    with pytest.raises(UnreadableMedia, match=r"/cat\.jpg is a web page"):
        load_image_with(fetcher, server.url("/cat.jpg"), LIMITS)


def test_a_body_without_length_is_read_to_its_end(server: PictureServer, fetcher: Fetcher) -> None:
    def chunked(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (PNG[:10], PNG[10:], b""):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    server.answers["/cat"] = chunked
    assert fetcher(server.url("/cat"), LIMITS) == PNG


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.test/cat.png",
        "file:///etc/hostname",
        "FILE:/etc/hostname",
        "ftp://pictures.test/cat.png",
        "gopher://pictures.test/",
        "https://user:secret@pictures.test/cat.png",
        "https://user@pictures.test/cat.png",
        "https:///cat.png",
        "https://",
        "https://[::1/cat.png",
        "https://pictures.test:99999/",
        "https://pictures.test:x/",
        "https://a b/",
        "https://\0/",
        "https://" + "a" * 300 + "/",
        "https://-\u2603-.\u0301/",
    ],
)
def test_urls_that_are_refused_unseen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _no_lookup)
    with pytest.raises(UnreadableMedia) as caught:
        load_image(url)
    assert "secret" not in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 200


def _no_lookup(*_: Any, **__: Any) -> Any:
    raise socket.gaierror("no such host")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "localhost",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
def test_the_network_around_the_device_is_out_of_reach(host: str, server: PictureServer) -> None:
    with pytest.raises(UnreadableMedia, match="not a public internet address"):
        load_image(server.url("/cat", host))
    assert server.names == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("100.64.0.1", False),
        ("172.16.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("fec0::1", False),
        ("::127.0.0.1", False),
        ("64:ff9b:1::1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


class _Names:
    """A name server that gives each answer once, then the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != "pictures.test":
            return self._real(host, port, *args, **options)
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answer]


def test_the_connection_goes_to_the_address_that_was_checked(
    server: PictureServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _Names(["10.0.0.1", "127.0.0.1"], ["10.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    server.answers["/cat"] = lambda h: h.send(PNG)
    assert fetcher(server.url("/cat", "pictures.test"), LIMITS) == PNG
    assert names.asked == ["pictures.test"]
    assert server.names == ["pictures.test"]
    assert server.seen[0][1]["Host"] == f"pictures.test:{server.port}"


def test_a_name_that_turns_private_is_refused_on_the_next_hop(
    server: PictureServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _Names(["127.0.0.1"], ["192.168.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    server.answers["/a"] = _redirect("/b")
    with pytest.raises(UnreadableMedia, match=r"pictures\.test is not a public"):
        fetcher(server.url("/a", "pictures.test"), LIMITS)
    assert [path for path, _ in server.seen] == ["/a"]


def test_redirects_are_followed_up_to_the_limit(server: PictureServer, fetcher: Fetcher) -> None:
    server.answers |= {f"/{n}": _redirect(f"{n + 1}") for n in range(3)}
    server.answers["/3"] = lambda h: h.send(PNG)
    assert fetcher(server.url("/0"), LIMITS) == PNG
    with pytest.raises(UnreadableMedia, match="redirects more than 2 times"):
        fetcher(server.url("/0"), MediaLimits(max_redirects=2))


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("http://localhost/cat", "leads to http:"),
        ("file:///etc/hostname", "leads to file:"),
        ("https://me:secret@localhost/cat", "user name or password"),
        ("https://127.0.0.2/cat", "not a public internet address"),
        ("https://[::ffff:10.0.0.1]/cat", "not a public internet address"),
        ("https://localhost:x/cat", "not a URL"),
    ],
)
def test_redirects_are_judged_like_urls(
    to: str, words: str, server: PictureServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = _redirect(to)
    with pytest.raises(UnreadableMedia, match=words):
        fetcher(server.url("/"), LIMITS)


def test_a_declared_length_over_the_limit_is_refused_unread(
    server: PictureServer, fetcher: Fetcher
) -> None:
    server.answers["/cat"] = lambda h: h.send(b"", Content_Length=str(10**12))
    with pytest.raises(MediaTooLarge, match="larger than 64 MiB"):
        fetcher(server.url("/cat"), LIMITS)


def test_an_endless_body_is_cut_at_the_limit(server: PictureServer, fetcher: Fetcher) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:  # ends when the client hangs up
            handler.wfile.write(bytes(65536))

    server.answers["/cat"] = endless
    with pytest.raises(MediaTooLarge, match="larger than 1 MiB"):
        fetcher(server.url("/cat"), MediaLimits(max_bytes=2**20, timeout_s=30))


def test_compressed_answers_are_refused(server: PictureServer, fetcher: Fetcher) -> None:
    bomb = gzip.compress(bytes(2**20))
    server.answers["/cat"] = lambda h: h.send(bomb, Content_Encoding="gzip")
    with pytest.raises(UnreadableMedia, match="compressed"):
        fetcher(server.url("/cat"), LIMITS)


def test_a_server_that_drips_meets_the_deadline(server: PictureServer, fetcher: Fetcher) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.closing.wait(0.02):
            handler.wfile.write(b"x")

    server.answers["/cat"] = drip
    with pytest.raises(MediaTooLarge, match=r"took longer than 0\.5 s") as caught:
        fetcher(server.url("/cat"), MediaLimits(timeout_s=0.5))
    assert caught.value.retryable


def test_headers_that_drip_meet_the_deadline(server: PictureServer, fetcher: Fetcher) -> None:
    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not server.closing.wait(0.02):
            handler.wfile.write(b"x")

    server.answers["/cat"] = drip
    with pytest.raises(MediaTooLarge, match="took longer"):
        fetcher(server.url("/cat"), MediaLimits(timeout_s=0.5))


def test_a_redirect_does_not_renew_the_deadline(server: PictureServer, fetcher: Fetcher) -> None:
    def slow(handler: Handler) -> None:
        server.closing.wait(0.2)
        _redirect("/cat")(handler)

    server.answers["/cat"] = slow
    with pytest.raises(MediaTooLarge, match="took longer"):
        fetcher(server.url("/cat"), MediaLimits(timeout_s=0.5, max_redirects=1000))


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_handshake_that_hangs_meets_the_deadline(mute: int, fetcher: Fetcher) -> None:
    with pytest.raises(MediaTooLarge, match="took longer"):
        fetcher(f"https://127.0.0.1:{mute}/cat", MediaLimits(timeout_s=0.3))


def test_a_lookup_that_hangs_meets_the_deadline(
    server: PictureServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: server.closing.wait())
    with pytest.raises(MediaTooLarge, match="took longer"):
        fetcher("https://pictures.test/cat", MediaLimits(timeout_s=0.2))


@pytest.mark.parametrize(
    ("status", "retryable"), [(204, False), (403, False), (404, False), (429, True), (503, True)]
)
def test_answers_without_a_picture(
    status: int, retryable: bool, server: PictureServer, fetcher: Fetcher
) -> None:
    server.answers["/cat"] = lambda h: h.send(b"", status)
    with pytest.raises(UnreadableMedia, match=f"HTTP {status}") as caught:
        fetcher(server.url("/cat?token=secret"), LIMITS)
    assert caught.value.retryable is retryable
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 0123456789\r\n" * 20_000,
        b"",
    ],
)
def test_broken_http_is_a_media_error(
    answer: bytes, server: PictureServer, fetcher: Fetcher
) -> None:
    server.answers["/cat"] = lambda h: h.wfile.write(answer) and None
    with pytest.raises(MediaError, match=r"The connection to .* failed"):
        fetcher(server.url("/cat"), LIMITS)


def test_a_stranger_certificate_is_refused(server: PictureServer) -> None:
    with pytest.raises(UnreadableMedia, match=r"certificate .* not trusted") as caught:
        Fetcher(LOOPBACK.__contains__)(server.url("/cat"), LIMITS)
    assert not caught.value.retryable
    assert server.seen == []


def test_a_certificate_for_another_name_is_refused(server: PictureServer, fetcher: Fetcher) -> None:
    with pytest.raises(UnreadableMedia, match=r"certificate .* not trusted"):
        fetcher(server.url("/cat", "127.0.0.1"), LIMITS)


def test_nobody_listens(fetcher: Fetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreadableMedia, match=r"connection .* failed") as caught:
        fetcher(f"https://localhost:{port}/", LIMITS)
    assert caught.value.retryable


def test_an_unknown_host(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _no_lookup)
    with pytest.raises(UnreadableMedia, match=r"There is no host pictures\.test"):
        fetcher("https://pictures.test/cat.png", LIMITS)


def test_proxies_of_the_environment_are_not_used(
    server: PictureServer, fetcher: Fetcher, mute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{mute}")
    server.answers["/cat"] = lambda h: h.send(PNG)
    assert fetcher(server.url("/cat"), LIMITS) == PNG


def test_offline_fetches_nothing(server: PictureServer, fetcher: Fetcher) -> None:
    with pytest.raises(UnreadableMedia, match="switched off") as caught:
        fetcher(server.url("/cat?token=secret"), MediaLimits(allow_network=False))
    assert "EDGEVLM_OFFLINE" in str(caught.value.hint)
    assert server.names == []
