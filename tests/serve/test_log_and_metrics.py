"""What a server writes of its requests, and counts: nothing of what was said, and a line each."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from raw_http import CHAT, ask, connection, exchange, head, posted
from serving import TOKEN, Running, data_url, pixels, png, running, shown

from edgevlm import Model
from edgevlm.serve.log import Lines

SECRET = "canary-in-the-prompt"
PLAIN, JSON = False, True


class Log:
    """What the server's logger writes, as `edgevlm serve` has it written."""

    def __init__(self, *, as_json: bool) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(Lines(as_json=as_json))

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    log = Log(as_json=getattr(request, "param", JSON))
    logger = logging.getLogger("edgevlm.serve")
    logger.addHandler(log.handler)
    before, level = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield log
    logger.removeHandler(log.handler)
    logger.propagate = before
    logger.setLevel(level)


def last(server: Running, log: Log, count: int) -> dict[str, Any]:
    """The entry of the request that was just answered: it is written after the answer."""
    entries: list[dict[str, Any]] = []
    while len(entries) < count:
        assert ask(server, "GET", "/healthz").status == 200
        entries = [entry for entry in log.entries() if entry.get("path") != "/healthz"]
    assert len(entries) == count
    return entries[-1]


def test_a_request_is_a_line_of_what_it_took(server: Running, log: Log) -> None:
    assert server.chat(SECRET).status_code == 200
    entry = last(server, log, 1)
    assert entry["status"] == 200
    assert (entry["method"], entry["path"], entry["model"]) == ("POST", CHAT, server.model)
    assert entry["completion_tokens"] == 6
    assert entry["prompt_tokens"] > 0
    assert entry["ms"] >= entry["ttft_ms"] > 0
    assert entry["finish_reason"] == "length"


@pytest.mark.parametrize("log", [PLAIN, JSON], indirect=True)
def test_nothing_of_what_was_said_is_in_it(server: Running, log: Log) -> None:
    """Of requests that go well, and of those that don't."""
    fields: list[dict[str, Any]] = [
        {},
        {"stream": True},
        {"user": SECRET},
        {"temperature": SECRET},
        {"model": SECRET},
        {SECRET: 1},
        {"stop": SECRET},
        {"metadata": {"a": SECRET}},
        {"edgevlm": {"adapter": SECRET}},
    ]
    said = []
    for more in fields:
        answer = posted(server, server.body(SECRET, **more))
        said.append(answer.body)
    for part in (shown(f"/{SECRET}"), shown(data_url(SECRET.encode())), {"type": SECRET}):
        posted(server, server.body([part]))
    posted(server, SECRET.encode())
    exchange(server.url, head("GET", "/v1/models", token=SECRET))
    ask(server, "GET", f"/v1/models?{SECRET}=1")
    assert ask(server, "GET", "/healthz").status == 200
    assert len(log.lines) >= len(fields) + 5
    assert SECRET not in log.text
    assert TOKEN not in log.text
    content = json.loads(said[0])["choices"][0]["message"]["content"]
    assert content not in log.text


def test_it_is_where_it_was_asked_for(model: Model, log: Log) -> None:
    with running(model, log_prompts=True) as server:
        answer = server.chat(SECRET).json()["choices"][0]["message"]["content"]
        entry = last(server, log, 1)
        assert entry["prompt"] == [SECRET]
        assert entry["text"] == answer
        server.chat([shown(data_url(png(pixels()))), {"type": "text", "text": SECRET}])
        entry = last(server, log, 2)
        assert entry["prompt"] == [SECRET]
        assert "base64" not in log.text


INJECTED = "2026-01-01T00:00:00 info status=200 path=/forged"
BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("log", [PLAIN, JSON], indirect=True)
def test_no_client_writes_lines_of_its_own(model: Model, log: Log) -> None:
    with running(model, log_prompts=True) as server:
        for line_break in BREAKS:
            path = f"/nowhere{line_break}{INJECTED}"
            with server.client() as client:
                escaped = "".join(f"%{byte:02x}" for byte in path.encode())
                assert client.get("/" + escaped.removeprefix("%2f")).status_code == 404
            assert posted(server, server.body(f"a{line_break}{INJECTED}")).status == 200
        ask(server, "GET", "/%1b%5b2J%1b%5d0;title%07")
        ask(server, "GET", "/%ff%fe%ed%a0%80")
        until_written(server, log, 2 * len(BREAKS) + 2)
    assert not any(line.startswith(INJECTED) for line in log.lines)
    assert log.text.replace("\n", "").isprintable()
    assert sum(not line.startswith(("2", '{"time"')) for line in log.lines) == 0


def until_written(server: Running, log: Log, count: int) -> None:
    """Wait by asking for what is not logged, a thousand times at most."""
    for _ in range(1000):
        if len(log.lines) >= count:
            return
        assert ask(server, "GET", "/healthz").status == 200
    raise AssertionError(f"{len(log.lines)} lines of {count} were written")


@pytest.mark.parametrize("log", [PLAIN], indirect=True)
def test_a_value_is_no_other_field(server: Running, log: Log) -> None:
    ask(server, "GET", "/x%20status=200%20path=%22/y%22")
    until_written(server, log, 1)
    assert log.lines[0].count(" status=") == 2
    assert r'path="/x status=200 path=\"/y\""' in log.lines[0]
    assert "status=404" in log.lines[0].partition("path=")[0]


def test_a_long_path_is_cut(server: Running, log: Log) -> None:
    ask(server, "GET", "/" + "x" * 30_000)
    entry = last(server, log, 1)
    assert len(entry["path"]) < 300


def test_a_client_says_not_where_it_comes_from(server: Running, log: Log) -> None:
    more = ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7", "X-Real-IP: 203.0.113.7"]
    ask(server, "GET", "/v1/models", more=more)
    entry = last(server, log, 1)
    assert entry["client"].startswith("127.0.0.1:")
    assert "203.0.113.7" not in log.text


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ({"token": None}, 401, "invalid_api_key"),
        ({"host": "evil.example"}, 403, "bad_host"),
        ({"more": ["Origin: null"]}, 403, "bad_origin"),
        ({"path": "/nowhere"}, 404, 404),
    ],
)
def test_what_was_refused_says_why(
    server: Running, log: Log, how: dict[str, Any], status: int, code: str | int
) -> None:
    options = {"path": "/v1/models"} | how
    ask(server, "GET", options.pop("path"), **options)
    entry = last(server, log, 1)
    assert (entry["status"], entry["error"]) == (status, code)


def test_a_client_that_leaves_amid_its_request_is_no_failure(server: Running, log: Log) -> None:
    with connection(server.url) as sock:
        sock.sendall(head(more=["Content-Length: 1000"]) + b'{"model":')
        sock.shutdown(socket.SHUT_RDWR)
    entry = last(server, log, 1)
    assert entry["error"] == "cancelled"
    assert "trace" not in log.text


# Metrics.


def metrics(server: Running) -> dict[tuple[str, ...], float]:
    answer = ask(server, "GET", "/metrics")
    assert answer.status == 200
    assert "text/plain; version=0.0.4" in answer.head
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert all(family.documentation for family in families)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_and_tokens_are_counted(server: Running) -> None:
    before = metrics(server)
    usage = server.chat("How many?").json()["usage"]
    after = metrics(server)

    def grown(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    assert grown("edgevlm_requests_total", CHAT, "200") == 1
    assert grown("edgevlm_tokens_total", "completion") == usage["completion_tokens"] == 6
    assert grown("edgevlm_tokens_total", "prompt") == usage["prompt_tokens"]
    assert grown("edgevlm_answer_seconds_count") == 1
    assert grown("edgevlm_first_token_seconds_count") == 1
    assert after[("edgevlm_active",)] == after[("edgevlm_queued",)] == 0
    assert after[("edgevlm_contexts",)] >= 1


def test_no_client_makes_them_grow(server: Running) -> None:
    """Paths are a route's pattern or `other`, whatever is asked for."""
    for token in (TOKEN, None):
        for number in range(20):
            for path in (f"/nowhere{number}", f"/v1/models/x{number}", f"/page/x{number}.js"):
                for method in ("GET", f"BREW{number}"):
                    ask(server, method, path, token=token)
    routes = {key[1] for key in metrics(server) if key[0] == "edgevlm_requests_total"}
    known = {route.path for route in server.server.routes}
    assert routes <= {*known, "other"}
    assert {"/v1/models/{name:path}", "other"} <= routes


def test_metrics_say_nothing_of_what_was_said(server: Running) -> None:
    posted(server, server.body(SECRET, user=SECRET, model=SECRET))
    server.chat(SECRET, user=SECRET)
    text = ask(server, "GET", "/metrics").body.decode()
    assert SECRET not in text
    assert TOKEN not in text
