"""Videos and image token budgets through `Session`, on a small random-weight SmolVLM2."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_factory import make_video

from edgevlm import AsyncSession, Model, Session, load_model, load_settings
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import NotSupported, PromptTooLong, UnreadableMedia, UsageError

FRAME = 4  # tokens of one tile
VIDEO = make_video(frames=60, fps=10)  # six seconds, so six frames


@pytest.fixture(scope="module")
def model(smolvlm: Path) -> Iterator[Model]:
    with load_model(str(smolvlm)) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model) as session:
        yield session


@pytest.fixture
def encodings(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[ImageInput]:
    """Every picture that really goes through the vision encoder, none known from before."""
    seen: list[ImageInput] = []
    encode = model.vision.encode

    def counted(image: ImageInput, cancel: Cancel) -> np.ndarray:
        seen.append(image)
        return encode(image, cancel)

    model.tower._features.clear()
    monkeypatch.setattr(model.vision, "encode", counted)
    return seen


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)


def test_a_video_is_seen_frame_by_frame(session: Session, encodings: list[ImageInput]) -> None:
    reply = session.ask("What happens?", video=VIDEO, max_tokens=4)
    assert reply.usage.image_tokens == 6 * FRAME
    assert len(encodings) == 6
    follow_up = session.ask("And then?", max_tokens=4)
    assert len(encodings) == 6
    assert follow_up.usage.image_tokens == 6 * FRAME
    assert follow_up.usage.cached_tokens >= reply.usage.prompt_tokens - 1


def test_the_same_video_again_is_known(session: Session, encodings: list[ImageInput]) -> None:
    first = session.ask("What happens?", video=VIDEO, max_tokens=4)
    session.reset()
    again = session.ask("What happens?", video=VIDEO, max_tokens=4)
    assert len(encodings) == 6
    assert [t.id for t in again.tokens] == [t.id for t in first.tokens]
    session.reset()
    session.ask("What happens?", video=make_video(frames=60, fps=10, size=(48, 64)), max_tokens=4)
    assert len(encodings) == 12


def test_every_form_of_a_video(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(VIDEO)
    for form in (path, str(path), VIDEO, bytearray(VIDEO)):
        session.reset()
        assert session.ask(video=form, max_tokens=1).usage.image_tokens == 6 * FRAME


def test_pictures_and_a_video_together(session: Session) -> None:
    reply = session.ask("Same?", [picture()], video=VIDEO, detail="low", max_tokens=1)
    assert reply.usage.image_tokens == 7 * FRAME


@pytest.mark.parametrize("answer", [10, 100])
def test_as_many_frames_as_the_context_holds_beside_the_answer(smolvlm: Path, answer: int) -> None:
    long = make_video("mp4", frames=40, fps=1, size=(32, 32))
    settings = load_settings({"EDGEVLM_CONTEXT_LENGTH": "500"})
    with Session(str(smolvlm), settings=settings) as session:
        usage = session.ask("What happens?", video=long, max_tokens=answer).usage
        assert 0 < usage.image_tokens < 40 * FRAME
        assert 500 - answer - 40 < usage.prompt_tokens <= 500 - answer
        session.reset()
        with pytest.raises(PromptTooLong):
            session.ask("word " * 600, video=long)


def test_a_stream_can_be_cancelled_while_frames_are_decoded(
    session: Session, encodings: list[ImageInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevlm.families import smolvlm_video

    prepared = []
    prepare = smolvlm_video.prepare

    def cancelling(pixels: np.ndarray, tiling: Any) -> ImageInput:
        prepared.append(1)
        if len(prepared) == 3:
            session.cancel()
        return prepare(pixels, tiling)

    monkeypatch.setattr(smolvlm_video, "prepare", cancelling)
    stream = session.stream("What happens?", video=make_video(frames=60, fps=10, key_every=1))
    assert list(stream) == []
    assert stream.reply.finish_reason == "cancelled"
    assert (encodings, len(prepared)) == ([], 3)
    assert session.ask("And?", max_tokens=1).usage.image_tokens == 0


def test_a_model_that_sees_no_videos_says_so(
    session: Session, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.family, "video", None)
    with pytest.raises(NotSupported, match="not made to see videos"):
        session.ask("What happens?", video=VIDEO)
    assert session.ask("And?", max_tokens=1).usage.image_tokens == 0


def test_a_broken_video_leaves_the_conversation_as_it_was(session: Session) -> None:
    first = session.ask("What?", video=VIDEO, max_tokens=2)
    with pytest.raises(UnreadableMedia):
        session.ask("And this?", video=VIDEO[:100])
    assert session.ask("And?", max_tokens=1).usage.image_tokens == first.usage.image_tokens


def test_a_budget_bounds_each_picture(session: Session) -> None:
    def cost(**options: Any) -> int:
        session.reset()
        images = [picture(), picture()[:, ::-1]]
        return session.ask("What?", images, max_tokens=1, **options).usage.image_tokens

    assert cost() == 2 * 52
    assert cost(image_tokens=30) == 2 * 28
    assert cost(image_tokens=30, detail="low") == cost(image_tokens=4) == 2 * 4


def test_another_budget_meets_no_old_picture(session: Session, encodings: list[ImageInput]) -> None:
    session.ask("What?", [picture()], image_tokens=30, max_tokens=1)
    session.reset()
    other = session.ask("What?", [picture()], image_tokens=20, max_tokens=1)
    assert [image.n_tokens for image in encodings] == [28, 20]
    # Nothing of the picture is reused: only what stands before it.
    assert other.usage.cached_tokens < other.usage.prompt_tokens - 20


@pytest.mark.parametrize("budget", [0, -4, 2.5, True, "64", 3])
def test_budgets_that_make_no_sense(session: Session, budget: Any) -> None:
    with pytest.raises(UsageError):
        session.ask("What?", [picture()], image_tokens=budget)


def test_async_gives_the_same(model: Model, session: Session) -> None:
    expected = session.ask("What happens?", video=VIDEO, max_tokens=5).text

    async def run() -> list[str]:
        async with AsyncSession(model) as a_session:
            reply = await a_session.ask("What happens?", video=VIDEO, max_tokens=5)
            await a_session.reset()
            stream = a_session.stream("What happens?", video=VIDEO, max_tokens=5)
            async for _ in stream:
                pass
            return [reply.text, stream.reply.text]

    assert asyncio.run(run()) == [expected, expected]
