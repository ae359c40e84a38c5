"""Who may ask: every route of the application against every way of not being let in."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from raw_http import (
    BEFORE_THE_PASS,
    HEALTH,
    Answer,
    ask,
    connection,
    exchange,
    head,
    is_page,
    received,
    requests_of,
)
from serving import TOKEN, Running, running

from edgevlm import Model
from edgevlm.errors import UsageError
from edgevlm.remote import access
from edgevlm.serve.app import Options
from edgevlm.serve.guard import Limits

ALLOWED = "https://notes.example:8443"


def refused(answer: Answer, method: str, status: int, code: str | None) -> None:
    assert answer.status == status
    if method == "HEAD":
        return
    assert answer.error["code"] == code
    assert TOKEN not in answer.body.decode()


BAD_TOKENS: dict[str, dict[str, Any]] = {
    "none": {"token": None},
    "wrong": {"token": "wrong-token-of-some-length"},
    "cut short": {"token": TOKEN[:-1]},
    "with more behind it": {"token": f"{TOKEN}x"},
    "of another case": {"token": TOKEN.upper()},
    "empty": {"token": " "},
    "as a key": {"token": None, "more": [f"X-Api-Key: {TOKEN}"]},
    "as basic": {"token": None, "more": [f"Authorization: Basic {TOKEN}"]},
    "without its scheme": {"token": None, "more": [f"Authorization: {TOKEN}"]},
    "as a cookie": {"token": None, "more": [f"Cookie: token={TOKEN}; edgevlm_page={TOKEN}"]},
    "for a proxy": {"token": None, "more": [f"Proxy-Authorization: Bearer {TOKEN}"]},
    "twice": {"more": [f"Authorization: Bearer {TOKEN}"]},
    "after another": {"token": "wrong", "more": [f"Authorization: Bearer {TOKEN}"]},
    "beyond ASCII": {"token": "\xe9" * 20},
}


@pytest.mark.parametrize("how", BAD_TOKENS)
def test_no_route_but_health_answers_without_the_token(server: Running, how: str) -> None:
    for method, path in requests_of(server):
        answer = ask(server, method, path, **BAD_TOKENS[how])
        if path in HEALTH:
            assert answer.status == 200
        elif path in BEFORE_THE_PASS:
            assert answer.status == 200
            assert TOKEN.encode() not in answer.body
        elif is_page(path):
            assert answer.status == 401
            assert TOKEN.encode() not in answer.body
        else:
            refused(answer, method, 401, "invalid_api_key")
            assert "www-authenticate: bearer" in answer.head.lower()


def test_the_token_in_the_address_opens_nothing(server: Running) -> None:
    for method, path in requests_of(server):
        answer = ask(server, method, f"{path}?token={TOKEN}&api_key={TOKEN}", token=None)
        assert answer.status == (200 if path in BEFORE_THE_PASS or path in HEALTH else 401)


@pytest.mark.parametrize("path", ["/", "/nowhere", "/v1", "/v1/files", "//v1/models", "/metrics/"])
def test_paths_that_are_not_there_need_the_token_too(server: Running, path: str) -> None:
    assert ask(server, "GET", path, token=None).status == 401
    if path != "/":
        assert ask(server, "GET", path).status in (404, 307)


BAD_HOSTS = [
    "evil.example",
    "evil.example:8642",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost@evil.example",
    "evil.example@localhost",
    "me:secret@127.0.0.1",
    "127.0.0.1@127.0.0.1",
    "localhost.",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0.0.0.0",
    "127.0.0.2",
    "[::ffff:127.0.0.1]",
    "[::1",
    "::1",
    "[::1]x",
    "localhost:port",
    "localhost:123456",
    "localhost:80:80",
    "localhost/",
    "localhost/@evil.example",
    "localhost?x",
    "localhost#x",
    "localhost, evil.example",
    "local\thost",
    "loc\xe4lhost",
    "*",
    "",
]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_name_that_is_not_the_servers_reaches_no_route(server: Running, host: str) -> None:
    for method, path in requests_of(server):
        refused(ask(server, method, path, host=host), method, 403, "bad_host")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:8642", "[::1]:8642"])
def test_the_servers_own_names_are_taken(server: Running, host: str) -> None:
    assert ask(server, "GET", "/v1/models", host=host).status == 200


def test_two_hosts_or_none_reach_no_route(server: Running) -> None:
    """h11 refuses them itself, before there is a request."""
    for method, path in requests_of(server):
        two = ask(server, method, path, more=["Host: localhost"])
        assert two.status == 400
        none = exchange(server.url, f"{method} {path} HTTP/1.0\r\n\r\n".encode())
        refused(none, method, 403, "bad_host")


def test_an_address_in_the_request_line_is_no_other_host(server: Running) -> None:
    assert ask(server, "GET", "http://evil.example/v1/models").status == 404
    assert ask(server, "GET", "http://evil.example/v1/models", token=None).status == 401


BAD_ORIGINS = [
    "null",
    "https://evil.example",
    "http://evil.example:8642",
    "http://localhost.evil.example",
    "http://localhost:1",
    "https://localhost@evil.example",
    "http://evil.example@localhost",
    "http://localhost/",
    "http://[::1",
    "http://[::1]x]",
    "file://",
    "file://localhost",
    "ftp://localhost",
    "chrome-extension://abcdefgh",
    "localhost",
    "http://",
    "http://127.0.0.1",
    "http://localhost, http://localhost",
    "*",
    "",
    "http://loc\xe4lhost",
]


@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_a_page_from_elsewhere_reaches_no_route(server: Running, origin: str) -> None:
    for method, path in requests_of(server):
        answer = ask(server, method, path, more=[f"Origin: {origin}"])
        refused(answer, method, 403, "bad_origin")
        assert "access-control" not in answer.head.lower()


def test_two_origins_reach_no_route(server: Running) -> None:
    own = "Origin: http://localhost"
    for method, path in requests_of(server):
        for other in (own, "Origin: null", "Origin: https://evil.example"):
            answer = ask(server, method, path, more=[own, other])
            refused(answer, method, 403, "bad_origin")


def test_the_servers_own_origin_may_ask(server: Running) -> None:
    for host in ("localhost", "127.0.0.1:8642", "[::1]:8642"):
        more = [f"Origin: http://{host}"]
        assert ask(server, "GET", "/v1/models", host=host, more=more).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json, text/plain",
        "",
    ],
)
def test_a_body_that_is_not_json_reaches_no_route(server: Running, kind: str | None) -> None:
    """What a form of any page may send without asking first."""
    body = b'{"model": "edgevlm-tiny"}'
    tried = 0
    for method, path in requests_of(server):
        if method != "POST" or path == "/page":  # which takes no body, and the token
            continue
        tried += 1
        answer = exchange(
            server.url, head(path=path, kind=kind, more=[f"Content-Length: {len(body)}"]) + body
        )
        assert answer.status == 415
        assert answer.error["type"] == "invalid_request_error"
    assert tried >= 2


def test_a_compressed_body_is_refused(server: Running) -> None:
    answer = ask(server, "POST", "/v1/chat/completions", more=["Content-Encoding: gzip"])
    assert answer.status == 415
    assert "compressed" in answer.error["message"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_methods_that_no_route_has_are_refused(server: Running, method: str) -> None:
    for _, path in requests_of(server):
        answer = ask(server, method, path)
        assert answer.status == 405
        assert answer.error["type"] == "invalid_request_error"
        if path not in HEALTH and not is_page(path):
            assert ask(server, method, path, token=None).status == 401


@pytest.fixture(scope="module")
def open_server(model: Model) -> Iterator[Running]:
    with running(model, origins=[f"{ALLOWED.upper()}/"], hosts=["My-Mac.local"]) as server:
        yield server


def test_they_may_read_answers(open_server: Running) -> None:
    answer = ask(open_server, "GET", "/v1/models", more=[f"Origin: {ALLOWED}"])
    assert answer.status == 200
    assert f"access-control-allow-origin: {ALLOWED}\r\n" in answer.head.lower() + "\r\n"
    assert "access-control-allow-credentials" not in answer.head.lower()


def test_they_need_the_token(open_server: Running) -> None:
    answer = ask(open_server, "GET", "/v1/models", token=None, more=[f"Origin: {ALLOWED}"])
    refused(answer, "GET", 401, "invalid_api_key")


def test_a_browser_may_ask_for_them_first(open_server: Running) -> None:
    more = [
        f"Origin: {ALLOWED}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization, content-type",
    ]
    answer = ask(open_server, "OPTIONS", "/v1/chat/completions", token=None, more=more)
    assert answer.status == 200
    lines = answer.head.lower()
    assert f"access-control-allow-origin: {ALLOWED}" in lines
    assert "*" not in lines
    assert "authorization" in lines


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://notes.example"])
def test_no_others_may(open_server: Running, origin: str) -> None:
    more = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
    for method in ("GET", "OPTIONS"):
        answer = ask(open_server, method, "/v1/models", more=more)
        refused(answer, method, 403, "bad_origin")
        assert "access-control" not in answer.head.lower()


def test_another_name_of_the_server_is_taken(open_server: Running) -> None:
    assert ask(open_server, "GET", "/v1/models", host="my-mac.LOCAL:8642").status == 200
    assert ask(open_server, "GET", "/v1/models", host="mac.local").status == 403


@pytest.mark.parametrize(
    "origin", ["*", "null", "", "notes.example", "https://*", "https://a b", "https://a/b"]
)
def test_what_is_no_origin_can_not_be_allowed(origin: str) -> None:
    with pytest.raises(UsageError, match="no origin"):
        Options(origins=[origin])


def test_a_body_that_drips_is_cut_off(model: Model) -> None:
    """The whole body has a time, however often something of it comes."""
    with running(model, limits=Limits(body_s=0.3)) as server, connection(server.url) as sock:
        sock.sendall(head(more=["Content-Length: 100000"]))
        sock.settimeout(0.05)
        for _ in range(200):
            try:
                sock.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                sock.sendall(b" ")
        sock.settimeout(30)
        answer = received(sock)
    assert answer.status == 408
    assert "in time" in answer.error["message"]


def test_tokens_are_compared_in_constant_time(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both comparisons go through hmac's, and nothing decides before it."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(access, "compare_digest", compare)
    for given in ("x", TOKEN[:-1], TOKEN):
        ask(server, "GET", "/v1/models", token=given)
    assert compared == [(given.encode(), TOKEN.encode()) for given in ("x", TOKEN[:-1], TOKEN)]
