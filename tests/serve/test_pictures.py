"""Where pictures may come from: nowhere by default, and never from this device or its network."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from picture_server import PictureServer
from raw_http import Answer, posted, refused_as_wrong
from serving import Running, pixels, png, running, shown

from edgevlm import Model
from edgevlm.media import MediaLimits, fetch
from edgevlm.media.fetch import Fetcher

CANARY = b"a secret of this device"
# An address that the package takes for one of the open internet; tests lead it to loopback.
PUBLIC = "93.184.216.34"
ALLOWED = "pictures.test"


class Honeypot:
    """Counts who connects to it, on a port of loopback that nothing should be led to."""

    def __init__(self) -> None:
        self.hits = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.hits += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def honeypot() -> Iterator[Honeypot]:
    pot = Honeypot()
    yield pot
    pot.close()


class Names:
    """A name server for the tests' names: each answer once, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, port: int, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.answers:
            return self._real(host, port, *args, **options)
        self.asked.append(name)
        left = self.answers[name]
        address = left.pop(0) if len(left) > 1 else left[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names)
    return names


@pytest.fixture
def internet(
    pictures: PictureServer,
    names: Names,
    trusting: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> PictureServer:
    """A picture server at an address of the open internet, with a name. What the package judges
    by is as it is; only whoever connects to that one address gets to loopback."""
    real = socket.create_connection

    def connect(address: Any, *args: Any, **options: Any) -> socket.socket:
        if address[0] == PUBLIC:
            address = ("127.0.0.1", pictures.port)
        return real(address, *args, **options)

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(fetch, "fetch", Fetcher(ssl_context=trusting))
    names.answers[ALLOWED] = [PUBLIC]
    return pictures


@pytest.fixture(scope="module")
def open_server(model: Model) -> Iterator[Running]:
    """One that may fetch from every host that a test here names."""
    hosts = [ALLOWED, *PRIVATE_HOSTS, *(host.strip("[]") for host in PRIVATE_HOSTS)]
    with running(model, media_hosts=hosts) as server:
        yield server


def shown_to(server: Running, url: str) -> Answer:
    return posted(server, server.body([shown(url), {"type": "text", "text": "?"}], max_tokens=1))


PRIVATE_HOSTS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.0.0.2",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "0127.0.0.1",
    "0.0.0.0",
    "0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "LocalHost.",
    "127.0.0.1.",
    "ip6-localhost",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a00:1::1]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fe80::1%lo]",
    "[fec0::1]",
    "[fd00::1]",
    "[ff02::1]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "\u0031\u0032\u0037.0.0.1",
    "\uff11\uff12\uff17.0.0.1",
    "\u2460\u2461\u2466.0.0.1",
    "127\u30020\u30020\u30021",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
    "rebinding.test",
    "private.test",
    "xn--rebindng-m3a.test",
]

TRICKS = [
    "http://{allowed}:{port}/cat",
    "HTTP://{allowed}:{port}/cat",
    "http://127.0.0.1:{port}/cat",
    "ftp://127.0.0.1:{port}/cat",
    "gopher://127.0.0.1:{port}/cat",
    "ws://127.0.0.1:{port}/cat",
    "wss://127.0.0.1:{port}/cat",
    "hf://127.0.0.1:{port}/cat",
    "s3://bucket/cat",
    "//127.0.0.1:{port}/cat",
    "///127.0.0.1:{port}/cat",
    "\\\\127.0.0.1@{port}\\cat",
    "https:127.0.0.1:{port}/cat",
    "https:/127.0.0.1:{port}/cat",
    "https:\\\\127.0.0.1:{port}\\cat",
    "https:///127.0.0.1:{port}/cat",
    "https://{allowed}@127.0.0.1:{port}/cat",
    "https://{allowed}:443@127.0.0.1:{port}/cat",
    "https://{allowed}%40127.0.0.1:{port}/cat",
    "https://{allowed}\\@127.0.0.1:{port}/cat",
    "https://127.0.0.1:{port}\\@{allowed}/cat",
    "https://127.0.0.1:{port}#@{allowed}/cat",
    "https://127.0.0.1:{port}?@{allowed}/cat",
    "https://127.0.0.1:{port}/@{allowed}/cat",
    "https://127.0.0.1:{port}%00.{allowed}/cat",
    "https://127.0.0.1\0.{allowed}:{port}/cat",
    "https://127.0.0.1%2f.{allowed}:{port}/cat",
    "https://127.0.0.1:{port},{allowed}/cat",
    "https://127.0.0.1:{port} {allowed}/cat",
    "https://127.0.0.1\t:{port}/cat",
    "https://127.0.0.1\n:{port}/cat",
    " https://127.0.0.1:{port}/cat",
    "\thttps://127.0.0.1:{port}/cat",
    "https://{allowed}.127.0.0.1.nip.test:{port}/cat",
    "https://x{allowed}:{port}/cat",
    "https://{allowed}.:{port}/cat",
    "https://{allowed}.evil.test:{port}/cat",
    "https://evil.test/{allowed}/cat",
    "data:image/png;url=https://127.0.0.1:{port}/cat,AAAA",
    "url:https://127.0.0.1:{port}/cat",
    "view-source:https://127.0.0.1:{port}/cat",
    "jar:https://127.0.0.1:{port}/cat!/x",
]


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_no_url_reaches_the_network_around_the_device(
    open_server: Running, honeypot: Honeypot, names: Names, host: str
) -> None:
    """Even of hosts that were allowed by name."""
    names.answers |= {"private.test": ["127.0.0.1"], "rebinding.test": [PUBLIC, "127.0.0.1"]}
    url = f"https://{host}:{honeypot.port}/cat"
    for _ in range(2):  # a second time, for names that change their mind
        refused_as_wrong(shown_to(open_server, url), 400, 413)
    assert honeypot.hits == 0


@pytest.mark.parametrize("trick", TRICKS)
def test_no_spelling_reaches_it_either(
    open_server: Running, honeypot: Honeypot, internet: PictureServer, trick: str
) -> None:
    url = trick.replace("{port}", str(honeypot.port)).replace("{allowed}", ALLOWED)
    refused_as_wrong(shown_to(open_server, url))
    assert honeypot.hits == 0
    assert internet.seen == []


REDIRECTS = [
    "https://127.0.0.1:{port}/cat",
    "https://localhost:{port}/cat",
    "https://[::1]:{port}/cat",
    "https://[::ffff:127.0.0.1]:{port}/cat",
    "https://2130706433:{port}/cat",
    "//127.0.0.1:{port}/cat",
    "http://127.0.0.1:{port}/cat",
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/cat",
    "data:image/png;base64,AAAA",
    "https://private.test:{port}/cat",
    "https://me@127.0.0.1:{port}/cat",
    "\\\\127.0.0.1:{port}\\cat",
    "https://other.test/cat",
    "/step",
    "https://127.0.0.1:{port}\r\nX: y",
]


@pytest.mark.parametrize("to", REDIRECTS)
def test_no_redirect_reaches_it(
    open_server: Running, honeypot: Honeypot, internet: PictureServer, names: Names, to: str
) -> None:
    names.answers |= {"private.test": ["127.0.0.1"], "other.test": [PUBLIC]}
    place = to.replace("{port}", str(honeypot.port))
    internet.answers["/"] = lambda h: h.send(b"", 302, Location=place.partition("\r")[0])
    internet.answers["/step"] = lambda h: h.send(
        b"", 307, Location=f"https://127.0.0.1:{honeypot.port}/cat"
    )
    refused_as_wrong(shown_to(open_server, f"https://{ALLOWED}/"))
    assert honeypot.hits == 0
    assert internet.seen[0][0] == "/"
    assert "other.test" not in names.asked


def test_a_name_that_is_private_on_the_second_look_is_not_connected_to(
    open_server: Running, honeypot: Honeypot, internet: PictureServer, names: Names
) -> None:
    names.answers[ALLOWED] = [PUBLIC, "127.0.0.1"]
    internet.answers["/"] = lambda h: h.send(
        b"", 302, Location=f"https://{ALLOWED}:{honeypot.port}/cat"
    )
    refused_as_wrong(shown_to(open_server, f"https://{ALLOWED}/"))
    assert names.asked == [ALLOWED, ALLOWED]
    assert honeypot.hits == 0


def test_the_honeypot_counts(honeypot: Honeypot) -> None:
    """What the tests above rest on: whoever is led there is seen."""
    careless = Fetcher(lambda address: True)
    with pytest.raises(Exception, match="connection"):
        careless(f"https://127.0.0.1:{honeypot.port}/cat", MediaLimits())
    assert honeypot.hits == 1


def test_a_host_that_is_allowed_gives_pictures(
    open_server: Running, internet: PictureServer
) -> None:
    internet.answers["/cat"] = lambda h: h.send(png(pixels()))
    by_url = shown_to(open_server, f"https://{ALLOWED.upper()}/cat")
    assert by_url.status == 200
    assert len(internet.seen) == 1
    assert TOKEN_HEADERS.isdisjoint(internet.seen[0][1])


TOKEN_HEADERS = {"Authorization", "Cookie", "Referer", "X-Forwarded-For"}


def test_nothing_is_fetched_by_default(
    server: Running, internet: PictureServer, names: Names
) -> None:
    error = refused_as_wrong(shown_to(server, f"https://{ALLOWED}/cat"))
    assert error["param"] == "messages[0].content[0]"
    assert names.asked == []
    assert internet.seen == []


@pytest.mark.parametrize(
    "form",
    [
        "{path}",
        "file://{path}",
        "file:{path}",
        "FILE://{path}",
        "file://localhost{path}",
        " {path}",
        "data:{path}",
        "data:image/png;base64,{path}",
        "https://{path}",
        "https:{path}",
        "https://../../../../..{path}",
        "~/../..{path}",
        "./../../../../../../../..{path}",
        "/proc/self/root{path}",
        "/proc/self/environ",
        "/dev/stdin",
        "/dev/zero",
        "C:{path}",
        "\\\\?\\{path}",
        "\\\\localhost\\c$\\{path}",
        "{path}\0.png",
        "",
        " ",
    ],
)
def test_no_file_of_this_device_is_read(
    open_server: Running, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it looked for: there and not there are told alike."""
    picture = tmp_path / "cat.png"
    picture.write_bytes(png(pixels()))
    told = []
    for path in (picture, tmp_path / "dog.png"):
        answer = shown_to(open_server, form.replace("{path}", str(path)))
        error = refused_as_wrong(answer)
        told.append((error["code"], error["message"].replace(str(path), "")))
    assert told[0] == told[1]
