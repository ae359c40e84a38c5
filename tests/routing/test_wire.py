"""What leaves the device, to whom, and how a call is stopped."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import trustme
from cloud_parts import CANARY, MakeCloud
from provider_server import Handler, ProviderServer, answers, delta, status

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import CloudAnswerBroken, CloudUnavailable, Interrupted
from edgevlm.messages import Message, Sent
from edgevlm.routing.call import wait
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.request import AnswerOptions

QUESTION = [Message("user", "What is this?")]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def assert_nothing_sent(cloud: Cloud, says: str) -> None:
    stream = cloud.stream(QUESTION)
    with pytest.raises(CloudUnavailable, match=says) as caught:
        next(stream)
    assert stream.receipt.sent == Sent()
    assert stream.receipt.cost_usd == 0
    assert cloud.ledger.spending().day == 0
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_nobody_listens(make_cloud: MakeCloud, pauses: list[float]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://localhost:{bound.getsockname()[1]}/v1"
        assert_nothing_sent(make_cloud(url, attempts=3), "can't be reached")
    assert len(pauses) == 2
    assert 0 < pauses[0] <= 0.5 < 0.5 + pauses[1] <= 1.5


def test_an_unknown_host(make_cloud: MakeCloud) -> None:
    assert_nothing_sent(make_cloud("https://nobody.invalid/v1", attempts=1), "can't be reached")


def test_a_certificate_that_is_not_trusted(make_cloud: MakeCloud, tls: ssl.SSLContext) -> None:
    with ProviderServer(answers("A circle."), context=tls) as server:
        cloud = make_cloud(server.url)
        assert_nothing_sent(cloud, "certificate of localhost:[0-9]+ is not trusted")
        assert server.requests == []


def test_a_certificate_of_another_name(
    make_cloud: MakeCloud, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.org").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with ProviderServer(answers("A circle."), context=context) as server:
        assert_nothing_sent(make_cloud(server.url), "is not trusted")


def test_certificates_of_ones_own(
    make_cloud: MakeCloud,
    authority: trustme.CA,
    tls: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with ProviderServer(answers("A circle."), context=tls) as server:
        assert make_cloud(server.url).ask(QUESTION).text == "A circle."


def test_a_handshake_that_nobody_answers(make_cloud: MakeCloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        started = time.monotonic()
        assert_nothing_sent(make_cloud(url, timeout_s=0.3), "took longer")
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(make_cloud: MakeCloud, code: int) -> None:
    with ProviderServer(answers("Mine now.")) as other:

        def redirects(handler: Handler) -> None:
            place = f"{other.url}/chat/completions?token={CANARY}"
            handler.send(code, b"", "text/plain", Location=place)

        with (
            ProviderServer(redirects) as server,
            pytest.raises(CloudAnswerBroken, match="redirects to localhost") as caught,
        ):
            make_cloud(server.url).ask(QUESTION)
        assert other.requests == []
    assert CANARY not in caught.value.message


def test_no_header_tells_of_the_device(
    make_cloud: MakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-provider")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-another-provider")
    with ProviderServer(answers("A circle.")) as server:
        make_cloud(server.url).ask(
            QUESTION, AnswerOptions(max_tokens=7, temperature=0.5, stop=("\n",))
        )
        path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers.pop("User-Agent").startswith("edgevlm/")
    assert headers == {
        "Host": headers["Host"],
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Authorization": f"Bearer {CANARY}",
    }
    assert json.loads(body) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "What is this?"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "stop": ["\n"],
    }


def test_a_proxy_of_the_environment_gets_nothing(
    make_cloud: MakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProviderServer(answers("A circle.")) as server, ProviderServer(answers("Mine.")) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        assert make_cloud(server.url).ask(QUESTION).text == "A circle."
        assert proxy.requests == []


def test_a_conversation_with_a_schema(make_cloud: MakeCloud) -> None:
    pixels = np.zeros((30, 20, 3), np.uint8)
    conversation = [
        Message("system", "Be brief."),
        Message("user", "What is this?", (pixels, pixels)),
        Message("assistant", "Black."),
        Message("user", "Sure?"),
    ]
    with ProviderServer(answers("{}")) as server:
        answer = make_cloud(server.url).ask(conversation, AnswerOptions(schema={"type": "object"}))
        body = json.loads(server.requests[0][2])
        pictures = server.pictures()
    assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url"] * 2 + ["text"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert answer.sent == Sent(text_bytes=9 + 13 + 6 + 5, image_bytes=sum(map(len, pictures)))
    assert answer.receipt.pictures[0] == answer.receipt.pictures[1]


def test_cancel_closes_the_connection_at_once(make_cloud: MakeCloud) -> None:
    cancel, left = Cancel(), threading.Event()

    def talks_and_waits(handler: Handler) -> None:
        handler.head(200, "text/event-stream")
        handler.event(delta("A red "))
        cancel.set()
        handler.connection.settimeout(10)
        if handler.connection.recv(1) == b"":
            left.set()

    with ProviderServer(talks_and_waits) as server:
        cloud = make_cloud(server.url)
        stream = cloud.stream(QUESTION, cancel=cancel)
        with pytest.raises(Interrupted):
            list(stream)
        assert left.wait(10)
    assert stream.text in ("", "A red")
    assert stream.receipt.at_most
    assert cloud.ledger.spending().day == stream.receipt.cost_usd != 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancel_before_anything_is_answered(make_cloud: MakeCloud, scheme: str) -> None:
    cancel = Cancel()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cancel_at_the_first_bytes() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                cancel.set()
                connection.settimeout(10)
                while connection.recv(65536):
                    pass

        thread = threading.Thread(target=cancel_at_the_first_bytes)
        thread.start()
        url = f"{scheme}://localhost:{listener.getsockname()[1]}/v1"
        with pytest.raises(Interrupted):
            make_cloud(url).ask(QUESTION, cancel=cancel)
        thread.join()


def test_cancel_in_a_pause(make_cloud: MakeCloud) -> None:
    cancel = Cancel()

    def waits(seconds: float, given: Cancel) -> None:
        given.set()

    with ProviderServer(status(503)) as server:
        with pytest.raises(Interrupted):
            make_cloud(server.url, wait=waits).ask(QUESTION, cancel=cancel)
        assert len(server.requests) == 1


def test_a_real_pause_ends_with_a_cancel() -> None:
    cancel = Cancel()
    cancel.set()
    started = time.monotonic()
    wait(60.0, cancel)
    assert time.monotonic() - started < 5


def test_a_reader_that_leaves_closes_the_connection(make_cloud: MakeCloud) -> None:
    left = threading.Event()

    def talks_on(handler: Handler) -> None:
        handler.head(200, "text/event-stream")
        try:
            while not handler.server.closing.is_set():
                handler.event(delta("la "))
        except OSError:
            left.set()

    with ProviderServer(talks_on) as server:
        cloud = make_cloud(server.url)
        stream = cloud.stream(QUESTION)
        assert next(stream) == "la "
        stream.close()
        assert left.wait(10)
    assert cloud.ledger.spending().day == stream.receipt.cost_usd != 0


def test_no_threads_stay_behind(make_cloud: MakeCloud) -> None:
    with ProviderServer(answers("A circle.")) as server:
        cloud = make_cloud(server.url)
        cloud.ask(QUESTION)
        before = threading.active_count()
        for _ in range(20):
            cloud.ask(QUESTION)
        assert threading.active_count() <= before + 2
