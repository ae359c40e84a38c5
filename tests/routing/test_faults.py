"""A provider that fails in every way we could think of: the caller has an answer or a typed error
within the deadline, the ledger counts no less than the provider bills, and the key is nowhere."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloud_parts
import numpy as np
import pytest
from cloud_parts import CANARY, PRICES, MakeCloud
from provider_server import (
    Behaviour,
    Handler,
    ProviderServer,
    answers,
    delta,
    status,
    usage,
)

from edgevlm.errors import CloudAnswerBroken, CloudError, CloudRefused, CloudUnavailable
from edgevlm.messages import Message
from edgevlm.routing.prices import Tokens, dollars
from edgevlm.routing.request import AnswerOptions

QUESTION = (Message("user", "What is this?", (np.zeros((40, 40, 3), np.uint8),)),)
NOISE = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
LARGE = (Message("user", "What is this?", (NOISE,) * 4),)  # more than the system's buffers hold
MOST_TOKENS = 64
DEADLINE_S = 0.6  # where the provider would keep us for ever
ENCODING_S = 3.0  # more, for the large pictures
SLACK_S = 3.0  # of a busy machine

good = answers("A ", "red ", "circle.")


def silent(handler: Handler) -> None:
    handler.bill(MOST_TOKENS)
    handler.server.closing.wait()


def closes(handler: Handler) -> None:
    pass


def resets(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drips(what: bytes) -> Behaviour:
    """Send a byte at a time, and never come to an end."""

    def behave(handler: Handler) -> None:
        handler.bill(MOST_TOKENS)
        handler.wfile.write(what)
        while not handler.server.closing.wait(0.02):
            handler.wfile.write(b" ")

    return behave


def breaks_off(*pieces: str) -> Behaviour:
    """Half a stream: what was announced doesn't come."""

    def behave(handler: Handler) -> None:
        handler.bill(MOST_TOKENS)
        handler.head(200, "text/event-stream", Content_Length="100000")
        for piece in pieces:
            handler.event(delta(piece))

    return behave


def events(*values: Any, content_type: str = "text/event-stream") -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.bill(MOST_TOKENS)
        handler.head(200, content_type)
        for value in values:
            handler.event(value)

    return behave


def endless(data: bytes) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.bill(MOST_TOKENS)
        handler.head(200, "text/event-stream")
        while not handler.server.closing.is_set():
            handler.wfile.write(data)

    return behave


def raw(data: bytes) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.bill(MOST_TOKENS)
        handler.connection.sendall(data)

    return behave


def body(data: bytes, content_type: str, **headers: str) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.bill(MOST_TOKENS)
        handler.send(200, data, content_type, **headers)

    return behave


def never_reads(handler: Handler) -> None:
    handler.server.closing.wait()


never_reads.ignores_body = True  # type: ignore[attr-defined]

HTML = b"<!doctype html><p>Please sign in to this network."
BOMB = gzip.compress(b"data: " + b"0" * 20_000_000)
WHOLE = json.dumps({"choices": [{"message": {"content": "A circle."}}]}).encode()
DONE = b"[DONE]"
STOP = delta(None, "stop")


@dataclass(frozen=True)
class Fault:
    """What the provider does in turn, and what comes of it: an error, or the answer's end."""

    behaviours: tuple[Behaviour, ...]
    outcome: type[CloudError] | str
    says: str = ""
    messages: Sequence[Message] = QUESTION

    @property
    def deadline_s(self) -> float:
        if not self.says.startswith("took longer"):
            return 20.0
        return DEADLINE_S + (ENCODING_S if self.messages is LARGE else 0)


FAULTS = {
    "silent": Fault((silent,), CloudUnavailable, "took longer than 0.6 s"),
    "closes": Fault((closes,), CloudUnavailable, "broke off"),
    "closes once": Fault((closes, good), "circle."),
    "resets": Fault((resets,), CloudUnavailable, "broke off"),
    "drips a status line": Fault((drips(b"HTTP/1.1 200 "),), CloudUnavailable, "took longer"),
    "drips headers": Fault((drips(b"HTTP/1.1 200 OK\r\nX: "),), CloudUnavailable, "took longer"),
    "drips an event": Fault(
        (drips(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: "),),
        CloudUnavailable,
        "took longer",
    ),
    "no HTTP": Fault((raw(b"220 mail ready\r\n"),), CloudUnavailable, "broke off"),
    "endless headers": Fault(
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200_000),), CloudUnavailable, "broke off"
    ),
    "wrong chunks": Fault(
        (
            raw(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
            ),
        ),
        CloudUnavailable,
        "broke off",
    ),
    "429": Fault((status(429, "slow down"), good), "circle."),
    "429 for 2 s": Fault((status(429, "slow down", Retry_After="0.2"), good), "circle."),
    "429 for an hour": Fault(
        (status(429, "slow down", Retry_After="3600"),), CloudUnavailable, "slow down"
    ),
    "429 until a date": Fault(
        (status(429, "slow down", Retry_After="Tue, 01 Dec 2026 10:00:00 GMT"),),
        CloudUnavailable,
        "slow down",
    ),
    "429 for nonsense": Fault((status(429, "wait", Retry_After="a while"), good), "circle."),
    "429 without end": Fault((status(429, "slow down"),), CloudUnavailable, "HTTP 429"),
    "429 of an empty account": Fault(
        (status(429, "insufficient_quota"),), CloudRefused, "insufficient_quota"
    ),
    "500 once": Fault((status(500, "oops"), good), "circle."),
    "500 storm": Fault((status(500, "oops"),), CloudUnavailable, "HTTP 500: oops"),
    "502 as a page": Fault((status(502, "bad gateway"),), CloudUnavailable, "502"),
    "503 for 0.1 s": Fault((status(503, "busy", Retry_After="0.1"), good), "circle."),
    "key rejected": Fault((status(401, "Incorrect API key: KEY"),), CloudRefused, "rejected"),
    "key forbidden": Fault((status(403, "no access for KEY"),), CloudRefused, "rejected"),
    "unknown model": Fault((status(404, "no model m"),), CloudRefused, "no model m"),
    "too large": Fault((status(413, "too large"),), CloudRefused, "413"),
    "not paid": Fault((status(402, "pay first"),), CloudRefused, "pay first"),
    "bad request": Fault((status(400, "no pictures here"),), CloudRefused, "no pictures"),
    "max_tokens has another name": Fault(
        (status(400, "Unsupported 'max_tokens': use 'max_completion_tokens'"), good), "circle."
    ),
    "no stream_options": Fault((status(422, "extra field stream_options"), good), "circle."),
    "half a stream": Fault((breaks_off("A red "),), CloudUnavailable, "broke off"),
    "no word of a stream": Fault((breaks_off(), good), "circle."),
    "a stream without its end": Fault((events(delta("A red ")),), CloudUnavailable, "broke off"),
    "wrong JSON": Fault((events(b'{"choices": [}'),), CloudAnswerBroken, "not the stream"),
    "JSON of another kind": Fault((events([1, 2], "x", 3, None, DONE),), CloudError),
    "choices of another kind": Fault(
        (events({"choices": 7}, {"choices": [None]}, {"choices": [{"delta": "x"}]}, DONE),),
        CloudError,
    ),
    "nested JSON": Fault((events(b"[" * 100_000 + b"]" * 100_000),), CloudAnswerBroken),
    "no UTF-8": Fault((events(b'{"choices": "\xff\xfe"}'),), CloudError),
    "half a surrogate pair": Fault((events(delta("circle.\ud83d"), STOP, DONE),), "circle.?"),
    "moves the cursor": Fault((events(delta("\x1b[2Jcircle."), STOP, DONE),), "[2Jcircle."),
    "a web page": Fault((body(HTML, "text/html"),), CloudAnswerBroken, "text/html"),
    "no stream": Fault((body(WHOLE, "application/json"),), CloudAnswerBroken, "stream of events"),
    "no content type": Fault(
        (raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),), CloudAnswerBroken, "nothing"
    ),
    "compressed": Fault(
        (body(BOMB, "text/event-stream", Content_Encoding="gzip"),), CloudAnswerBroken, "compressed"
    ),
    "an empty answer": Fault((events(STOP, DONE),), CloudAnswerBroken, "empty answer"),
    "an empty body": Fault((body(b"", "text/event-stream"),), CloudUnavailable, "broke off"),
    "endless text": Fault(
        (endless(b"data: " + json.dumps(delta("la " * 50)).encode() + b"\n\n"),),
        CloudAnswerBroken,
        "more text than",
    ),
    "endless pings": Fault((endless(b": ping\n\n" * 1000),), CloudAnswerBroken, "more than"),
    "an endless line": Fault((endless(b"x" * 65536),), CloudAnswerBroken, "more than"),
    "an error in the stream": Fault(
        (events({"error": {"message": f"overloaded, {CANARY}"}}),), CloudUnavailable, "overloaded"
    ),
    "an error after words": Fault(
        (events(delta("A "), {"error": {"message": "overloaded"}}),), CloudUnavailable, "overloaded"
    ),
    "a filter": Fault((answers("I ", finish="content_filter"),), CloudRefused, "filter"),
    "the key in the answer": Fault(
        (answers("It is ", CANARY[:7], CANARY[7:20], CANARY[20:] + " and ", "a circle."),),
        "circle.",
    ),
    "no usage": Fault((answers("A ", "circle.", counts={}),), "circle."),
    "usage of nothing": Fault((answers("A ", "circle.", counts=usage(0, 0)),), "circle."),
    "usage below nothing": Fault((answers("A ", "circle.", counts=usage(-9, -9)),), "circle."),
    "usage of words": Fault((answers("A ", "circle.", counts=usage("1", [])),), "circle."),
    "usage beyond belief": Fault((answers("A ", "circle.", counts=usage(10**40, 9)),), "circle."),
    "never reads": Fault((never_reads,), CloudUnavailable, "took longer", LARGE),
}


@pytest.fixture
def output(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[[], str]:
    """All that was printed and logged, at every level."""
    caplog.set_level(logging.DEBUG)

    def read() -> str:
        out, err = capfd.readouterr()
        return out + err + caplog.text

    return read


@pytest.fixture(scope="module", autouse=True)
def _client_is_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first call takes a second more, which no deadline here allows for."""
    with ProviderServer(good) as server:
        cloud_parts.make_cloud(tmp_path_factory.mktemp("first"), server.url).ask(QUESTION)


def all_of(error: BaseException) -> str:
    """What can be printed of an error and its causes, the local variables of every frame too."""
    lines = [repr(vars(error))]
    seen: BaseException | None = error
    while seen is not None:
        lines += traceback.TracebackException.from_exception(seen, capture_locals=True).format()
        seen = seen.__cause__ or seen.__context__
    return "".join(lines)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_in_an_answer_or_a_typed_error(
    name: str, make_cloud: MakeCloud, home: Path, output: Callable[[], str]
) -> None:
    fault = FAULTS[name]
    timeout_s = fault.deadline_s
    with ProviderServer(*fault.behaviours) as server:
        cloud = make_cloud(server.url, timeout_s=timeout_s, answer_bytes=200_000, picture_side=2000)
        stream = cloud.stream(fault.messages, AnswerOptions(max_tokens=MOST_TOKENS))
        started = time.monotonic()
        if isinstance(fault.outcome, str):
            assert "".join(stream).rstrip().endswith(fault.outcome)
            told = repr(stream.answer)
        else:
            with pytest.raises(fault.outcome) as caught:
                list(stream)
            assert time.monotonic() - started < timeout_s + SLACK_S
            assert fault.says in caught.value.message
            assert "\n" not in caught.value.message
            told = all_of(caught.value) if fault.messages is QUESTION else repr(caught.value)
        billed = Tokens(server.billed.prompt, server.billed.completion)
    receipt = stream.receipt
    assert receipt.sent.image_bytes > 0
    assert cloud.ledger.spending().day >= dollars(PRICES.cost(billed))
    assert receipt.cost_usd == pytest.approx(cloud.ledger.spending().day)
    cloud.close()
    assert CANARY not in told + output() + repr(receipt) + repr(cloud)
    for path in home.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()
