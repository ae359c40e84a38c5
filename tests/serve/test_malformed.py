"""Requests that are too large, broken or malicious: each is refused in so many words, and costs
the server neither its health, nor memory, nor a place in its queue."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_http import CHAT, connection, exchange, head, posted, refused_as_wrong, whole
from serving import Running, data_url, pixels, shown
from serving import png as png_of

LIMIT = 32 * 2**20
EMBEDDINGS = "/v1/embeddings/image"


pytestmark = pytest.mark.usefixtures("memory", "health")


# Sizes and frames of a body.


def test_a_length_over_the_limit_is_refused_before_it_comes(server: Running) -> None:
    error = refused_as_wrong(exchange(server.url, head(more=[f"Content-Length: {LIMIT + 1}"])), 413)
    assert error["code"] == "request_too_large"


def test_a_body_over_the_limit_is_refused(server: Running) -> None:
    refused_as_wrong(exchange(server.url, [whole(b" " * (LIMIT + 1))]), 413)


def chunks(count: int, size: int = 2**20) -> Iterator[bytes]:
    yield head(more=["Transfer-Encoding: chunked"])
    for _ in range(count):
        yield b"%x\r\n%b\r\n" % (size, b" " * size)
    yield b"0\r\n\r\n"


def test_a_body_without_a_length_is_refused_where_it_passes_the_limit(server: Running) -> None:
    error = refused_as_wrong(exchange(server.url, chunks(40)), 413)
    assert error["code"] == "request_too_large"


def test_a_body_in_a_million_chunks_is_read(server: Running) -> None:
    body = json.dumps(server.body(temperature="hot")).encode()
    data = head(more=["Transfer-Encoding: chunked"])
    data += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert refused_as_wrong(exchange(server.url, data))["param"] == "temperature"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: -1"],
        ["Content-Length: 0x10"],
        ["Content-Length: 1e3"],
        ["Content-Length: \xb2"],
        ["Content-Length: " + "9" * 30],
        ["Content-Length: "],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: identity"],
        ["No colon"],
        [": no name"],
        ["Bad name: x"],
        ["X-Nul: a\0b"],
        ["X-Long: " + "x" * 100_000],
        [f"X-{n}: {n}" for n in range(20_000)],
    ],
    ids=lambda lines: lines[0][:40],
)
def test_headers_that_break_http_close_the_connection(server: Running, lines: list[str]) -> None:
    answer = exchange(server.url, head(more=lines) + b"{}")
    assert answer.status in (0, 400, 431, 501)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/0.9\r\n\r\n",
        b"GET /v1/models HTTP/2.0\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET  /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/mod\0els HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\0" * 1000,
        b"\r\n" * 50_000,
        b"A" * 200_000,
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_http_closes_the_connection(server: Running, data: bytes) -> None:
    with_end = exchange(server.url, data)
    assert with_end.status in (0, 400, 401, 403, 404, 431)
    assert b"Traceback" not in with_end.body


def test_a_body_that_is_shorter_than_it_says_is_waited_for_and_given_up(server: Running) -> None:
    """The client hangs up; see test_guard for one that does not."""
    with connection(server.url) as sock:
        sock.sendall(head(more=["Content-Length: 1000"]) + b'{"model":')


def test_garbage_behind_a_request_does_not_change_its_answer(server: Running) -> None:
    body = json.dumps(server.body(temperature="hot")).encode()
    first = head(more=[f"Content-Length: {len(body)}"]).replace(b"Connection: close\r\n", b"")
    answer = exchange(server.url, first + body + b"GARBAGE\0\r\n\r\n" * 100)
    assert answer.status == 400
    assert b"temperature" in answer.body


def test_a_request_hidden_in_anothers_body_is_not_one(server: Running) -> None:
    hidden = head("GET", "/v1/models")
    both = head(more=["Transfer-Encoding: chunked", f"Content-Length: {len(hidden)}"])
    answer = exchange(server.url, both + b"0\r\n\r\n" + hidden)
    assert answer.status == 400
    assert b"owned_by" not in answer.body


# JSON.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b"{} {}",
        b"not json",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        '{"model": "x"}'.encode("utf-16"),
        b'{"model": "\xff"}',
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\\ud800"}',
        b'{"model": "\\udc00\\ud800"}',
        b'{"model": "a\nb"}',
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b"{'model': 'x'}",
        b'{"model": 01}',
        b'{"model": "x",}',
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'{"metadata":' + b"[" * 1_000_000,
        b'{"metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_001 + b"}",
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b'{"seed": 1e' + b"9" * 10_000 + b"}",
        b'{"temperature": ' + b"9" * 10_000 + b"}",
        b'{"metadata": ' + b"9" * 100_000 + b"}",
        b"\x1f\x8b" + zlib.compress(b"{}"),
    ],
    ids=lambda body: repr(body[:40]),
)
@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS])
def test_what_is_no_request_is_refused(server: Running, body: bytes, path: str) -> None:
    refused_as_wrong(posted(server, body, path))


def test_of_a_key_that_comes_twice_the_last_one_counts(server: Running) -> None:
    body = json.dumps(server.body()).replace('"model"', '"model": "nothing", "model"', 1)
    assert posted(server, body.encode()).status == 200
    swapped = json.dumps(server.body())[:-1] + ', "model": "nothing"}'
    assert refused_as_wrong(posted(server, swapped.encode()), 404)["code"] == "model_not_found"


WRONG: list[Any] = [True, -7, 1.5, "x" * 10**6, [], ["x"], {"x": 1}, [[]], -(10**30)]
MINE = ("adapter", "scale", "route", "detail", "image_tokens", "tokens")


def fields() -> dict[str, Callable[[dict[str, Any], Any], Any]]:
    """How to set each field of a request."""
    import msgspec

    from edgevlm.serve.protocol import ChatRequest

    def at(*path: Any) -> Callable[[dict[str, Any], Any], Any]:
        def put(body: dict[str, Any], value: Any) -> None:
            for step in path[:-1]:
                body = body[step]
            body[path[-1]] = value

        return put

    part = ("messages", 0, "content", 0)
    places: list[tuple[Any, ...]] = [
        *((name,) for name in msgspec.structs.asdict(msgspec.convert(MINIMAL, ChatRequest))),
        *(("edgevlm", name) for name in MINE),
        ("messages", 0),
        ("messages", 0, "role"),
        ("messages", 0, "content"),
        part,
        *((*part, name) for name in ("type", "image_url", "uuid")),
        *((*part, "image_url", name) for name in ("url", "detail", "image_tokens")),
        ("stream_options", "include_usage"),
        ("response_format", "type"),
        ("response_format", "json_schema"),
        ("response_format", "json_schema", "schema"),
    ]
    return {".".join(map(str, place)): at(*place) for place in places}


PICTURE = data_url(png_of(pixels()))
TEXT = {"type": "text", "text": "What is it?"}
MINIMAL = {"model": "x", "messages": []}
FIELDS = fields()


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_type_in_any_field_is_told_or_taken(server: Running, field: str) -> None:
    """Never a 500, whatever comes; what has no meaning there is a 4xx."""
    told = 0
    for value in WRONG:
        body = server.body([shown(PICTURE), TEXT], max_tokens=1)
        body |= {"edgevlm": {}, "stream_options": {}}
        if field.startswith("response_format."):
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": {}}}
        FIELDS[field](body, value)
        answer = posted(server, body)
        if answer.status != 200:
            assert answer.status in (400, 404, 409, 413), (value, answer.body[:300])
            assert answer.error["type"] == "invalid_request_error"
            told += 1
    assert told or field in ("metadata", "tool_choice", "function_call", "prediction")
