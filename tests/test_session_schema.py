"""Structured output through `Session`, on a small random-weight SmolVLM run by ONNX Runtime."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field

from edgevlm import AsyncSession, Model, Session, load_model
from edgevlm.engine.cancel import Cancel
from edgevlm.errors import UsageError


class Size(BaseModel):
    width: int = Field(ge=1, le=640)
    height: int = Field(ge=1, le=640)


class Finding(BaseModel):
    name: str = Field(max_length=8)
    kind: Literal["food", "animal", "vehicle"]
    size: Size
    tags: list[bool] = Field(min_length=1, max_length=3)


SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["sure", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(smolvlm: Path) -> Iterator[Model]:
    with load_model(str(smolvlm)) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model) as session:
        yield session


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_a_class_gives_an_instance(session: Session) -> None:
    for seed in range(4):
        session.reset()
        reply = session.ask("What?", [picture()], schema=Finding, temperature=1.0, seed=seed)
        assert isinstance(reply.parsed, Finding)
        assert reply.finish_reason == "stop"
        assert reply.to_dict()["parsed"] == json.loads(reply.text)


def test_a_json_schema_gives_a_dict_and_the_stream_the_same(session: Session) -> None:
    reply = session.ask("What?", schema=SCHEMA)
    assert list(reply.parsed) == ["sure", "kind"]
    session.reset()
    stream = session.stream("What?", schema=json.dumps(SCHEMA))
    assert "".join(t.text for t in stream) == reply.text
    assert stream.reply.parsed == reply.parsed


def test_logprobs_are_those_of_the_model_without_a_grammar(session: Session, model: Model) -> None:
    """Recomputed by forcing the answer's tokens through a fresh context."""
    question = "What is it?"
    reply = session.ask(question, schema=Finding, temperature=0.7, seed=3, top_logprobs=2)
    with Session(model) as plain:
        prompt = plain.stream(question, max_tokens=1)
        list(prompt)
        logits = plain._answers._slot._context.prefill(
            model.family.render([session._spoken[0].turn()]),
            lambda _: np.empty(0, np.float32),
            Cancel(),
        )[0]
        for token in reply.tokens:
            own = logits - np.log(np.exp(logits.astype(np.float64)).sum())
            assert token.logprob == pytest.approx(own[token.id], abs=1e-3)
            assert token.top[0].id == int(own.argmax())
            logits = plain._answers._slot._context.extend(token.id, Cancel())
    # Random weights would hardly say this by themselves.
    assert any(token.id != token.top[0].id for token in reply.tokens)


def test_an_answer_cut_short_has_no_value(session: Session) -> None:
    reply = session.ask("What?", schema=Finding, max_tokens=4)
    assert (reply.finish_reason, reply.parsed) == ("length", None)
    assert reply.to_dict()["parsed"] is None


def test_an_answer_ended_by_a_stop_string_has_no_value(session: Session) -> None:
    reply = session.ask("What?", schema=Finding, stop='"kind"')
    assert (reply.finish_reason, reply.parsed) == ("stop", None)


def test_cancel_works_and_the_next_question_answers_freely(session: Session) -> None:
    stream = session.stream("What?", schema={"type": "string", "minLength": 500}, max_tokens=400)
    next(stream)
    session.cancel()
    assert len(list(stream)) < 3
    assert (stream.reply.finish_reason, stream.reply.parsed) == ("cancelled", None)
    after = session.ask("And?", max_tokens=3)
    assert after.parsed is None
    assert "parsed" not in after.to_dict()


def test_the_vocabulary_is_read_once_a_model(model: Model, session: Session) -> None:
    session.ask("What?", schema=SCHEMA)
    first = model.grammars
    with Session(model) as other:
        other.ask("What?", schema=SCHEMA)
    assert model.grammars is first


@pytest.mark.parametrize("schema", ["{", {"type": "strin"}, {"$ref": "#"}, 5])
def test_a_bad_schema_leaves_the_conversation_as_it_was(session: Session, schema: object) -> None:
    first = session.ask("What?", [picture()], max_tokens=3)
    with pytest.raises(UsageError):
        session.ask("And?", schema=schema)
    assert session.ask("And?", max_tokens=1).usage.image_tokens == first.usage.image_tokens


def test_async_gives_the_same(model: Model, session: Session) -> None:
    expected = session.ask("What?", schema=Finding)

    async def run() -> tuple[object, object]:
        async with AsyncSession(model) as a_session:
            reply = await a_session.ask("What?", schema=Finding)
            await a_session.reset()
            stream = a_session.stream("What?", schema=Finding)
            async for _ in stream:
                pass
            return reply.parsed, stream.reply.parsed

    assert asyncio.run(run()) == (expected.parsed, expected.parsed)
