"""Who answers a session's question, and what leaves the device for it.

The cloud is another server of ours on loopback, with a model that answers otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import QUESTION, TOKEN, Running, adapters_home, pixels, running
from smolvlm_factory import make_random_model

from edgevlm import Model, Session, load_model, load_settings
from edgevlm.errors import CloudError, CloudNotAllowed, UsageError
from edgevlm.judge import Rating
from edgevlm.messages import Sent
from edgevlm.models.onnx_export import export_onnx
from edgevlm.routing.confidence import Judgement
from edgevlm.routing.consent import allow, deny
from edgevlm.routing.log import RouteLog
from edgevlm.routing.policy import Policy
from edgevlm.routing.prices import Prices
from edgevlm.routing.provider import Provider, write_provider
from edgevlm.settings import Settings

__all__ = ["adapters_home"]
ANSWER = {"max_tokens": 6}


@pytest.fixture(scope="module")
def model(smolvlm: Path) -> Iterator[Model]:
    with load_model(str(smolvlm), runtime="onnx") as model:
        yield model


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Other random weights, served."""
    source, folder = tmp_path_factory.mktemp("strong-source"), tmp_path_factory.mktemp("strong")
    make_random_model(source, seed=7, variant="smolvlm")
    export_onnx(source, folder, decoder_bits=32, vision_bits=32)
    with load_model(str(folder), runtime="onnx") as other, running(other) as server:
        yield server


@pytest.fixture
def asked(strong: Running) -> Iterator[list[str]]:
    """The paths of requests that reached the cloud."""
    seen: list[str] = []
    app = strong.server.app
    inner = app.middleware_stack  # type: ignore[attr-defined]

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
        await inner(scope, receive, send)

    app.middleware_stack = watched  # type: ignore[attr-defined]
    yield seen
    app.middleware_stack = inner  # type: ignore[attr-defined]


@pytest.fixture
def cloud(strong: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """Set up and allowed."""
    monkeypatch.setenv("EDGEVLM_CLOUD_API_KEY", TOKEN)
    provider = Provider(f"{strong.url}/v1", strong.model, prices=Prices(1.0, 2.0))
    write_provider(home, provider)
    allow(home, provider, ("text", "image"))
    return provider


def rated(monkeypatch: pytest.MonkeyPatch, confidence: float, *, unsure: bool = False) -> None:
    """Have every answer from here rated so."""
    verdict = Judgement(confidence, 0.0, unsure)
    monkeypatch.setattr(Rating, "of", lambda *_: verdict)


def ask(session: Session, **options: Any) -> Any:
    return session.ask(QUESTION, images=[pixels()], **(ANSWER | options))


@pytest.mark.usefixtures("cloud")
def test_local_sends_nothing_however_unsure(
    model: Model, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rated(monkeypatch, 0.01, unsure=True)
    with Session(model, route="local") as session:
        reply = ask(session)
    assert asked == []
    assert (reply.route.decision, reply.route.sent) == ("local", Sent())
    assert reply.unsure
    assert reply.confidence == 0.01
    assert "route local: confidence 0.01" in reply.route.reason


def test_cloud_answers_with_a_receipt(
    model: Model, strong: Running, cloud: Provider, asked: list[str], home: Path
) -> None:
    with Session(model, route="cloud") as session:
        reply = ask(session)
        streamed = "".join(token.text for token in session.stream("And its colour?", **ANSWER))
    assert reply.route.decision == "cloud"
    assert reply.model == strong.model
    assert reply.route.sent.image_bytes > 100
    assert reply.route.sent.text_bytes >= len(QUESTION)
    assert reply.route.cost_usd is not None
    assert reply.route.cost_usd > 0
    assert streamed
    assert asked == ["/v1/chat/completions"] * 2
    log = RouteLog(home)
    assert [entry["decision"] for entry in log.last(5)] == ["cloud", "cloud"]
    assert QUESTION not in json.dumps(log.last(5))
    log.close()


@pytest.mark.usefixtures("cloud")
def test_auto_asks_the_cloud_where_it_is_unsure(
    model: Model, strong: Running, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(model, route="auto") as session:
        rated(monkeypatch, 0.99)
        sure = ask(session)
        assert asked == []
        session.reset()
        rated(monkeypatch, 0.1, unsure=True)
        stream = session.stream(QUESTION, images=[pixels()], **ANSWER)
        shown = "".join(token.text for token in stream)
        unsure = stream.reply
    assert sure.route.decision == "local"
    assert unsure.route.decision == "cloud"
    # Nobody was shown the words of the answer from here.
    assert shown.strip() == unsure.text != sure.text
    assert unsure.model == strong.model
    assert "confidence 0.10" in unsure.route.reason


def test_without_consent_the_answer_from_here_is_marked(
    model: Model, cloud: Provider, asked: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(home, cloud, ("image",))
    rated(monkeypatch, 0.1, unsure=True)
    with Session(model, route="auto") as session:
        reply = ask(session)
    assert asked == []
    assert (reply.route.decision, reply.unsure) == ("local", True)
    assert "the cloud was not asked" in reply.route.reason
    with Session(model, route="cloud") as session, pytest.raises(CloudNotAllowed):
        ask(session)


@pytest.mark.usefixtures("cloud")
def test_without_the_network_nothing_is_sent(
    model: Model, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    rated(monkeypatch, 0.1, unsure=True)
    with Session(model, route="auto") as session:
        reply = ask(session)
    assert asked == []
    assert reply.unsure
    assert "the network is switched off" in reply.route.reason.lower()


def test_a_cloud_that_fails_leaves_the_answer_from_here(
    model: Model, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_CLOUD_API_KEY", TOKEN)
    provider = Provider("http://127.0.0.1:9/v1", "nobody")
    write_provider(home, provider)
    allow(home, provider, ("text", "image"))
    rated(monkeypatch, 0.1, unsure=True)
    with Session(model, route="local") as session:
        expected = ask(session).text
    with Session(model, route="auto") as session:
        stream = session.stream(QUESTION, images=[pixels()], **ANSWER)
        shown = "".join(token.text for token in stream)
        reply = stream.reply
    assert reply.text == expected == shown.strip()
    assert (reply.route.decision, reply.unsure) == ("local", True)
    assert "127.0.0.1:9" in reply.route.reason
    with Session(model, route="cloud") as session, pytest.raises(CloudError):
        ask(session)


@pytest.mark.usefixtures("cloud")
def test_an_answer_that_promises_nothing_is_not_read_on(
    model: Model, strong: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "hopeless", lambda self, case, tokens: len(tokens) == 2)
    with Session(model, route="auto") as session:
        reply = ask(session)
    assert reply.route.decision == "cloud"
    assert "stopped after 2 tokens" in reply.route.reason
    assert reply.model == strong.model


def test_without_a_cloud_it_says_so(model: Model) -> None:
    with pytest.raises(CloudNotAllowed, match="No cloud model"):
        Session(model, route="cloud")
    with Session(model, route="auto") as session:
        with pytest.raises(CloudNotAllowed):
            session.set_route("cloud")
        assert ask(session).route.decision == "local"
        with pytest.raises(UsageError):
            session.set_route("nowhere")


def caching(home: Path) -> Settings:
    return load_settings({"EDGEVLM_HOME": str(home), "EDGEVLM_CACHE": "1"})


def test_a_question_that_was_asked_before_is_answered_from_the_cache(
    model: Model, home: Path
) -> None:
    with Session(model, settings=caching(home)) as session:
        first = ask(session, top_logprobs=2)
        session.reset()
        again = ask(session, top_logprobs=2)
        follow_up = session.ask("And its colour?", **ANSWER)
    assert again.route.decision == "cache"
    assert again.tokens == first.tokens
    assert (again.text, again.usage) == (first.text, first.usage)
    assert again.timings.ttft_ms < first.timings.ttft_ms
    with Session(model, settings=caching(home)) as session:
        assert ask(session, top_logprobs=2).route.decision == "cache"
        # What comes after a cached answer is computed as after a computed one.
        assert session.ask("And its colour?", **ANSWER).text == follow_up.text


@pytest.mark.usefixtures("cloud")
def test_an_unsure_answer_of_before_does_not_keep_the_cloud_from_being_asked(
    model: Model, strong: Running, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rated(monkeypatch, 0.1, unsure=True)
    with Session(model, route="local", settings=caching(home)) as session:
        assert ask(session).unsure
        session.reset()
        assert ask(session).route.decision == "cache"
    with Session(model, route="auto", settings=caching(home)) as session:
        reply = ask(session)
    assert (reply.route.decision, reply.model) == ("cloud", strong.model)


def test_what_differs_is_not_answered_from_the_cache(
    model: Model, home: Path, adapters_home: Path
) -> None:
    other = pixels()
    other[0, 0, 0] ^= 1
    with Session(model, settings=caching(adapters_home)) as session:
        ask(session)
        for question, options in (
            (QUESTION, {"images": [other]}),
            (QUESTION, {"images": [np.ascontiguousarray(pixels().transpose(1, 0, 2))]}),
            ("What is not in the picture?", {}),
            (QUESTION, {"adapter": "one"}),
            (QUESTION, {"adapter": "one:0.5"}),
            (QUESTION, {"max_tokens": 5}),
            (QUESTION, {"detail": "low"}),
        ):
            session.reset()
            options = {"images": [pixels()]} | ANSWER | options
            assert session.ask(question, **options).route.decision == "local", (question, options)
        session.reset()
        assert ask(session).route.decision == "cache"


def test_what_is_drawn_anew_each_time_is_never_kept(model: Model, home: Path) -> None:
    with Session(model, settings=caching(home)) as session:
        ask(session, temperature=1.0)
        session.reset()
        assert ask(session, temperature=1.0).route.decision == "local"


def test_a_confidence_goes_with_every_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(model) as session:
        assert ask(session).confidence is None  # nobody calibrated random weights
        rated(monkeypatch, 0.75)
        assert ask(session).to_dict()["confidence"] == 0.75
