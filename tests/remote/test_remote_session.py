"""`Session(server=URL)`: a session whose model is on a server, held to one whose model is here."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import QUESTION, TOKEN, Running, pixels

from edgevlm import AsyncSession, Model, Reply, Session, load_model, load_settings
from edgevlm.errors import (
    CloudError,
    MediaError,
    NotSupported,
    Offline,
    PromptTooLong,
    UnknownAdapter,
    UnknownModel,
    UsageError,
)
from edgevlm.messages import ActiveAdapter, Sent
from edgevlm.remote.client import Server
from edgevlm.remote.model import RemoteModel


@pytest.fixture
def session(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    with Session(server=server.url) as session:
        yield session


def conversation(session: Session) -> list[Reply]:
    return [
        session.ask(QUESTION, images=[pixels()], max_tokens=6, top_logprobs=2),
        session.ask("And its colour?", max_tokens=6),
    ]


def test_it_answers_as_a_session_with_the_model_does(session: Session, model: Model) -> None:
    with Session(model) as local:
        pairs = list(zip(conversation(session), conversation(local), strict=True))
    for remote, here in pairs:
        assert [t.id for t in remote.tokens] == [t.id for t in here.tokens]
        assert np.allclose(
            [t.logprob for t in remote.tokens], [t.logprob for t in here.tokens], atol=2e-3
        )
        assert remote.text == here.text
        assert remote.finish_reason == here.finish_reason
        assert remote.usage.prompt_tokens == here.usage.prompt_tokens
        assert (remote.model, remote.runtime) == (here.model, here.runtime)
        assert remote.quantization == here.quantization
    assert pairs[0][0].tokens[0].top[0].text == pairs[0][1].tokens[0].top[0].text
    assert pairs[1][0].usage.cached_tokens > 0


def test_the_receipt_says_that_nothing_left_this_device(session: Session) -> None:
    route = session.ask(QUESTION, max_tokens=2).route
    assert route.decision == "local"
    assert route.sent == Sent()
    assert "127.0.0.1" in route.reason


def test_adapters_are_the_servers(session: Session, model: Model, adapters_home: Path) -> None:
    settings = load_settings({"EDGEVLM_HOME": str(adapters_home)})
    with Session(model, adapter="one:0.5", settings=settings) as local:
        expected = local.ask(QUESTION, images=[pixels()], max_tokens=6)
    session.use_adapters("one:0.5")
    reply = session.ask(QUESTION, images=[pixels()], max_tokens=6)
    assert [t.id for t in reply.tokens] == [t.id for t in expected.tokens]
    assert reply.adapter == (ActiveAdapter("one", 0.5),)
    with pytest.raises(UnknownAdapter, match="three"):
        session.use_adapters("three")
    with pytest.raises(UnknownAdapter):  # a folder of here is nothing to a server
        session.use_adapters(adapters_home)


def test_a_schema_goes_along(session: Session) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    reply = session.ask("How many?", schema=schema, max_tokens=40)
    assert isinstance(reply.parsed["n"], int)


def test_errors_of_the_server_are_those_of_a_session(session: Session) -> None:
    with pytest.raises(PromptTooLong):
        session.ask("word " * 9000)
    with pytest.raises(UsageError, match="least"):
        session.ask(QUESTION, images=[pixels()], image_tokens=1)
    with pytest.raises(MediaError):
        session.ask(QUESTION, images=[b"no picture"])
    with pytest.raises(NotSupported):
        session.ask(QUESTION, video=b"no video")
    assert session.ask(QUESTION, max_tokens=2).text is not None


def test_a_cancel_stops_it_and_frees_the_server(session: Session, server: Running) -> None:
    stream = session.stream(QUESTION, max_tokens=1000)
    next(stream)
    session.cancel()
    list(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert session.ask("Again?", max_tokens=2).finish_reason == "length"
    assert server.server.engine.active == 0


def test_it_can_be_awaited(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)

    async def ask() -> Reply:
        async with AsyncSession(server=server.url) as session:
            return await session.ask(QUESTION, max_tokens=3)

    assert len(asyncio.run(ask()).tokens) == 3


def test_a_wrong_token_says_what_to_set(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", "wrong-token-of-some-length")
    with pytest.raises(CloudError) as refused:
        Session(server=server.url)
    assert "EDGEVLM_SERVE_TOKEN" in (refused.value.hint or "")
    assert "wrong-token" not in str(refused.value)


def test_another_model_than_the_servers_is_refused(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    with pytest.raises(UnknownModel, match=r"edgevlm-tiny\."):
        Session("edgevlm-tiny", server=server.url)


def test_where_there_is_no_server_it_says_so() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(CloudError, match="Can't reach") as refused:
        Session(server=f"http://127.0.0.1:{port}")
    assert refused.value.exit_code == 5


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8642", "ftp://127.0.0.1", "http://", "http://me@127.0.0.1", "http://h:99999"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        Session(server=url)


def test_the_open_internet_is_asked_by_https_alone() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        Server("http://example.com")
    assert not Server("https://example.com").on_this_device
    assert not Server("http://192.168.1.5:8642").on_this_device


def test_without_the_network_only_this_device_is_asked(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    with pytest.raises(Offline):
        Session(server="https://example.com")
    with Session(server=server.url) as session:
        assert session.ask(QUESTION, max_tokens=2).tokens


def answering(body: bytes) -> tuple[str, threading.Thread]:
    """A server that says the same to everybody, once for each of two connections."""
    sock = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with sock:
            for _ in range(2):
                connection, _address = sock.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(body)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{sock.getsockname()[1]}", thread


def http(body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense\r\n\r\n",
        http(b"not json"),
        http(b"[]"),
        http(b'{"data": []}'),
        http(b'{"data": [{"id": "gpt-4o"}]}'),
        http(b'{"data": [{"edgevlm": 5}]}'),
        http(b"{" * 100_000),
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_server_of_ours_is_told_apart(body: bytes) -> None:
    url, _ = answering(body)
    with pytest.raises(CloudError):
        Session(server=url)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"data: {}\n\n",
        b"data: nonsense\n\n",
        b'data: {"edgevlm": {"tokens": [{}]}}\n\n',
        b'data: {"edgevlm": {"tokens": 5}}\n\n',
        b'data: {"error": "no object"}\n\n',
        b'data: {"choices": [{"finish_reason": "stop"}], "edgevlm": {"usage": {"a": 1}}}\n\n'
        b"data: [DONE]\n\n",
    ],
)
def test_a_stream_of_nonsense_is_an_error(server: Running, lines: bytes) -> None:
    url, _ = answering(http(lines, "text/event-stream"))
    model = RemoteModel(Server(server.url, TOKEN))
    model.server = Server(url)
    with Session(model) as session, pytest.raises(CloudError):
        session.ask(QUESTION)


def test_split_inference_gives_the_same_tokens(
    smolvlm: Path, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is encoded here and its embeddings are sent."""
    with load_model(str(smolvlm), runtime="onnx") as local, Session(local) as session:
        expected: Any = conversation(session)
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    with Session(str(smolvlm), "onnx", "split", server=server.url) as session:
        for reply, here in zip(conversation(session), expected, strict=True):
            assert [t.id for t in reply.tokens] == [t.id for t in here.tokens]
            assert reply.usage.image_tokens == here.usage.image_tokens


def test_the_half_that_sees_must_be_of_the_servers_model(
    server: Running,
    tmp_path: Path,
    smolvlm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "another-name"
    shutil.copytree(smolvlm, other)
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    with pytest.raises(UnknownModel, match="serves another"):
        Session(str(other), "onnx", "split", server=server.url)


def test_split_is_for_a_whole_session_with_a_server(
    smolvlm: Path, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="with a server"):
        Session(str(smolvlm), route="split")
    with Session(server=server.url) as session, pytest.raises(UsageError, match="whole session"):
        session.set_route("split")


def test_what_is_sent_to_another_device_is_counted(server: Running) -> None:
    """No other device is here: one that this client takes for it is."""

    class Elsewhere(Server):
        on_this_device = False

    with Session(RemoteModel(Elsewhere(server.url, TOKEN))) as session:
        reply = session.ask(QUESTION, images=[pixels()], max_tokens=2)
    assert reply.route.decision == "cloud"
    assert reply.route.sent.image_bytes > 4 * pixels().size / 3
    assert reply.route.sent.text_bytes > len(QUESTION)
    assert reply.route.sent.embedding_bytes == 0
