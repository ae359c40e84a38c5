"""One engine, many clients: no answer is lost, mixed up, or in the way of another's end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import TOKEN, Running, asking, pixels, running, until

from edgevlm import Model
from edgevlm.engine.prefix import PrefixContext
from edgevlm.serve.engine import TURN

ADAPTERS = (None, "one", "two", {"one": 0.5, "two": 1.0})
FOLLOW_UPS = ("And its colour?", "How many are there?")


def talk(server: Running, client: int) -> list[list[int]]:
    """A conversation of one client about one of four pictures, with one of four adapters: the
    ids of each answer."""
    messages: list[dict[str, Any]] = []
    said = []
    question = asking(pixels(client % 4), text=f"What is it, asks client {client}?")
    for content in (question, *FOLLOW_UPS):
        messages.append({"role": "user", "content": content})
        own = {"tokens": True, "adapter": ADAPTERS[client // 2 % 4]}
        answer = server.chat(messages=messages, edgevlm=own, max_tokens=8)
        assert answer.status_code == 200, answer.text
        said.append([token["id"] for token in answer.json()["edgevlm"]["tokens"]])
        messages.append(answer.json()["choices"][0]["message"])
    return said


def test_eight_clients_each_get_the_answers_of_one_alone(model: Model, adapters_home: Path) -> None:
    with running(model, adapters_home, parallel=1, contexts=1) as alone:
        twins = [talk(alone, client) for client in range(8)]
    with (
        running(model, adapters_home, parallel=4, contexts=8) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = list(clients.map(lambda client: talk(server, client), range(8)))
        assert server.server.engine.contexts <= 8
    assert answers == twins
    assert len({json.dumps(said) for said in twins}) == 8


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Within the block the engine's prefill begins and waits for the event, or a cancel."""
    go_on, prefill = threading.Event(), PrefixContext.prefill

    def waiting(self: PrefixContext, prompt: Any, embed: Any, cancel: Any) -> Any:
        while not go_on.wait(0.005):
            cancel.check()
        return prefill(self, prompt, embed, cancel)

    monkeypatch.setattr(PrefixContext, "prefill", waiting)
    try:
        yield go_on
    finally:
        go_on.set()


def test_answers_take_turns_by_a_few_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short answer that comes later is done before a long one."""
    extend, steps = PrefixContext.extend, []

    def noted(self: PrefixContext, token_id: int, cancel: Any) -> Any:
        steps.append(self)
        return extend(self, token_id, cancel)

    monkeypatch.setattr(PrefixContext, "extend", noted)
    with running(model) as server, ThreadPoolExecutor(2) as clients:
        with held(monkeypatch):
            long = clients.submit(server.chat, "Long?", max_tokens=40)
            until(lambda: server.server.engine.active == 1)
            short = clients.submit(server.chat, "Short?", max_tokens=10)
            until(lambda: server.server.engine.queued == 1)
        assert long.result().status_code == short.result().status_code == 200
    first, second = steps[0], next(step for step in steps if step is not steps[0])
    assert steps[:17].count(first) - steps[:17].count(second) <= TURN + 1
    assert (steps.count(first), steps.count(second)) == (39, 9)


def test_a_full_queue_says_when_to_come_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        running(model, parallel=1, contexts=1, queue_size=2) as server,
        ThreadPoolExecutor(3) as clients,
    ):
        engine = server.server.engine
        with held(monkeypatch):
            answers = [clients.submit(server.chat, "One?")]
            until(lambda: engine.active == 1)
            answers += [clients.submit(server.chat, f"Number {n}?") for n in range(2)]
            until(lambda: engine.queued == 2)
            refused = server.chat("Too many?")
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]


def send_and_leave(server: Running, content: str, *, stream: bool) -> socket.socket:
    body = json.dumps(server.body(content, stream=stream)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sock.sendall(head.encode() + body)
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_in_prefill_frees_the_engine(
    model: Model, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with running(model, parallel=1) as server:
        engine = server.server.engine
        with held(monkeypatch):
            sock = send_and_leave(server, "Never answered?", stream=stream)
            until(lambda: engine.active == 1)
            sock.close()
            until(lambda: engine.active == 0)
        assert server.chat("And now?").status_code == 200


def test_a_client_that_leaves_the_queue_leaves_a_place(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running(model, parallel=1, queue_size=1) as server,
        ThreadPoolExecutor(2) as clients,
    ):
        engine = server.server.engine
        with held(monkeypatch) as go_on:
            first = clients.submit(server.chat, "First?")
            until(lambda: engine.active == 1)
            sock = send_and_leave(server, "Waiting?", stream=False)
            until(lambda: engine.queued == 1)
            sock.close()
            until(lambda: engine.queued == 0)
            last = clients.submit(server.chat, "Last?")
            until(lambda: engine.queued == 1)
            go_on.set()
        assert first.result().status_code == last.result().status_code == 200


def test_a_client_that_leaves_a_stream_frees_the_engine(server: Running) -> None:
    with server.client() as client:
        body = server.body(max_tokens=4000, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_raw())
    until(lambda: server.server.engine.active == 0)


def test_an_answer_that_takes_too_long_is_ended(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(model, seconds=0.05) as server:
        with held(monkeypatch):
            response = server.chat("Endless?")
        assert response.status_code == 408
        assert response.json()["error"]["code"] == "timeout"
        assert server.chat(stream=True, max_tokens=5).status_code == 200


def test_an_answer_that_fails_is_told_and_the_next_one_comes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = PrefixContext.extend

    def failing(self: PrefixContext, token_id: int, cancel: Any) -> Any:
        raise RuntimeError("a secret of the server")

    with running(model) as server:
        monkeypatch.setattr(PrefixContext, "extend", failing)
        whole = server.chat("Fails?")
        streamed = server.chat("Fails?", stream=True)
        monkeypatch.setattr(PrefixContext, "extend", extend)
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == "internal_error"
        assert streamed.status_code == 200  # its head was sent with the first token
        last = json.loads(streamed.text.strip().split("\n\n")[-1][6:])
        assert last["error"]["code"] == "internal_error"
        assert "secret" not in whole.text + streamed.text
        assert server.chat("Works?").status_code == 200


def test_contexts_stay_within_their_number(model: Model) -> None:
    with running(model, parallel=2, contexts=3) as server:
        for seed in range(6):
            server.chat(asking(pixels(seed)))
        assert server.server.engine.contexts == 3


def test_a_server_that_drains_says_so_and_finishes_what_it_began(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(model) as server, ThreadPoolExecutor(1) as clients, server.client() as client:
        assert client.get("/readyz").json() == {"status": "ready", "model": server.model}
        with held(monkeypatch):
            answer = clients.submit(server.chat, "Begun?")
            until(lambda: server.server.engine.active == 1)
            server.server.drain()
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            refused = client.post("/v1/chat/completions", json=server.body())
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        assert answer.result().status_code == 200


def test_a_server_that_stops_ends_its_engine(model: Model) -> None:
    with running(model) as server:
        assert server.chat().status_code == 200
        assert server.server.engine.ready
    assert not server.server.engine.ready
    assert server.server.engine.contexts == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")


def test_where_nobody_may_wait_one_that_is_free_still_answers(model: Model) -> None:
    with running(model, parallel=1, queue_size=0) as server:
        assert server.chat("One?").status_code == server.chat("Another?").status_code == 200
