"""A server beside a `Session` of the same process, and what it does when a client leaves."""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from serve_load import SYSTEM, Said, Talk, client_of, hold, picture, picture_url
from serving import TOKEN, Running, running

from edgevlm import Session, load_model, load_settings

QUESTION = "What is in this picture?"
CONTEXTS = 8  # what a server keeps, unless told otherwise


def one(options: argparse.Namespace, runtime: str) -> Iterator[dict[str, Any]]:
    """The same question about pictures that differ in a pixel."""
    with load_model(options.model, runtime=runtime) as model:
        model.family.stop_ids = frozenset()  # every answer has all its tokens
        with (
            running(model) as server,
            client_of(server.url) as client,
            Session(model, system=SYSTEM, settings=load_settings(cache="off")) as session,
        ):

            def by_http(number: int, tokens: int = options.tokens) -> Said:
                talk = Talk(model.name, (QUESTION,), picture_url(number), tokens)
                return hold(client, talk)[0]

            def by_session(number: int, tokens: int = options.tokens) -> Said:
                return _ask(session, number, tokens)

            for number in range(CONTEXTS + 1):  # until no context is new
                by_http(number, tokens=1)
            by_session(CONTEXTS + 1, tokens=1)
            pairs = []
            for number in range(options.rounds):
                at = 100 + 2 * number
                if number % 2:
                    told, said = by_http(at), by_session(at + 1)
                else:
                    said, told = by_session(at), by_http(at + 1)
                pairs.append((told, said))
    yield {
        "first token by HTTP, ms": statistics.median(h.first for h, _ in pairs) * 1000,
        "first token by Session, ms": statistics.median(s.first for _, s in pairs) * 1000,
        "ratio (aim: at most 1.05)": statistics.median(h.first / s.first for h, s in pairs),
        "tokens/s by HTTP": statistics.median(h.decode_tps for h, _ in pairs),
        "tokens/s by Session": statistics.median(s.decode_tps for _, s in pairs),
        "ratio (aim: at least 0.95)": statistics.median(
            h.decode_tps / s.decode_tps for h, s in pairs
        ),
    }


def _ask(session: Session, number: int, tokens: int) -> Said:
    session.reset()
    shown = picture(number)
    began, times = time.perf_counter(), []
    for _ in session.stream(QUESTION, images=[shown], max_tokens=tokens):
        times.append(time.perf_counter())
    return Said("", (), len(times), times[0] - began, time.perf_counter() - began)


def gone(options: argparse.Namespace, runtime: str) -> Iterator[dict[str, Any]]:
    with load_model(options.model, runtime=runtime) as model, running(model) as server:
        lags = [_lag(server, number, options) for number in range(options.rounds)]
        after = server.chat("Are you there?").json()
    yield {
        "engine free after, ms": statistics.median(lags),
        "at the latest, ms (aim: 250)": max(lags),
        "tokens of the next answer": after["usage"]["completion_tokens"],
    }


def _lag(server: Running, number: int, options: argparse.Namespace) -> float:
    """Milliseconds from the end of the connection to an engine that has nothing to do."""
    question = f"{number} " + "Look at every part of it. " * (options.words // 6)
    body = json.dumps(server.body(question)).encode()
    url = httpx.URL(server.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )
    engine = server.server.engine
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head.encode() + body)
        _wait(lambda: engine.active > 0)
        time.sleep(options.after / 1000)
        if not engine.active:
            raise SystemExit("the prompt was read already: give more --words")
    began = time.perf_counter()
    _wait(lambda: engine.active == 0)
    return (time.perf_counter() - began) * 1000


def _wait(so: Callable[[], bool]) -> None:
    while not so():
        time.sleep(0.0005)
