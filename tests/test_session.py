"""`Session` and `AsyncSession` on a small random-weight SmolVLM, run by ONNX Runtime."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm import AsyncSession, Model, Session, load_model
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import (
    CloudError,
    ModelCorrupt,
    PromptTooLong,
    UnknownModel,
    UnreadableMedia,
    UsageError,
)


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


def picture(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_reply_is_complete(session: Session) -> None:
    reply = session.ask("What is this?", images=[picture()], max_tokens=6, top_logprobs=2)
    assert reply.text == "".join(t.text for t in reply.tokens).strip()
    assert reply.usage.completion_tokens == len(reply.tokens) <= 6
    assert 0 < reply.usage.image_tokens < reply.usage.prompt_tokens
    assert reply.usage.cached_tokens == 0
    assert all(t.logprob <= 0 and len(t.top) == 2 for t in reply.tokens)
    assert reply.runtime == {"vision": "onnx", "language": "onnx"}
    assert reply.timings.total_ms >= reply.timings.ttft_ms >= reply.timings.vision_ms > 0
    assert reply.peak_rss_bytes > 10_000_000
    assert list(reply.to_dict(tokens=True)) == [
        "text",
        "model",
        "runtime",
        "quantization",
        "adapter",
        "notices",
        "confidence",
        "unsure",
        "route",
        "finish_reason",
        "usage",
        "timings",
        "memory",
        "tokens",
    ]


def test_a_follow_up_encodes_nothing_and_reuses_the_prefix(
    session: Session, encodings: list[ImageInput]
) -> None:
    first = session.ask("What is this?", images=[picture()], max_tokens=4)
    second = session.ask("And what colour is it?", max_tokens=4)
    assert len(encodings) == 1
    # All of the first prompt but a token that may join with the answer's first letter.
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    assert second.usage.image_tokens == first.usage.image_tokens
    assert second.timings.vision_ms < first.timings.vision_ms


def test_another_picture_is_seen(session: Session, encodings: list[ImageInput]) -> None:
    one = session.ask("What is this?", images=[picture(1)], max_tokens=8)
    session.reset()
    two = session.ask("What is this?", images=[picture(2)], max_tokens=8)
    assert len(encodings) == 2
    assert [t.logprob for t in one.tokens] != [t.logprob for t in two.tokens]


def test_the_same_picture_in_a_new_conversation_is_known(
    session: Session, encodings: list[ImageInput]
) -> None:
    one = session.ask("What is this?", images=[picture()], max_tokens=8)
    session.reset()
    two = session.ask("What is this?", images=[picture()], max_tokens=8)
    assert len(encodings) == 1
    assert two.usage.cached_tokens == two.usage.prompt_tokens - 1
    assert [t.id for t in one.tokens] == [t.id for t in two.tokens]


def test_every_form_of_a_picture_is_the_same(session: Session, tmp_path: Path) -> None:
    pixels = picture()
    path = tmp_path / "a picture.png"
    Image.fromarray(pixels).save(path)
    forms = [pixels, Image.fromarray(pixels), str(path), path, path.read_bytes()]
    answers = set()
    for form in forms:
        session.reset()
        answers.add(tuple(t.id for t in session.ask("What?", images=[form], max_tokens=4).tokens))
    assert len(answers) == 1


@pytest.mark.parametrize("form", [lambda png: picture(), bytes, bytearray, memoryview])
def test_one_picture_need_not_be_in_a_list(
    session: Session, form: Callable[[bytes], object]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    images: Any = form(buffer.getvalue())
    assert session.ask("What?", images=images, max_tokens=1).usage.image_tokens > 0


def test_a_stream_gives_the_same_tokens_as_ask(session: Session) -> None:
    reply = session.ask("What is this?", images=[picture()], max_tokens=6)
    session.reset()
    stream = session.stream("What is this?", images=[picture()], max_tokens=6)
    with pytest.raises(UsageError, match="isn't finished"):
        _ = stream.reply
    assert [t.id for t in stream] == [t.id for t in reply.tokens]
    assert stream.reply.text == reply.text
    assert list(stream) == []
    assert stream.reply.text == reply.text


def test_cancel_keeps_what_was_said_and_the_session_goes_on(session: Session) -> None:
    stream = session.stream("What is this?", images=[picture()], max_tokens=200)
    read = [next(stream) for _ in range(3)]
    session.cancel()
    read += list(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert len(read) < 10
    assert stream.reply.tokens == tuple(read)
    after = session.ask("Go on?", max_tokens=2)
    assert after.usage.cached_tokens >= stream.reply.usage.prompt_tokens - 1


def test_cancel_before_the_first_token_leaves_no_trace(session: Session) -> None:
    stream = session.stream("What is this?", images=[picture()])
    session.cancel()
    assert list(stream) == []
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text == ""
    assert session.ask("What?", max_tokens=1).usage.image_tokens == 0


def test_a_new_question_ends_an_unfinished_stream(session: Session) -> None:
    stream = session.stream("What is this?", images=[picture()], max_tokens=200)
    while not next(stream).text:
        pass
    reply = session.ask("And?", max_tokens=2)
    assert list(stream) == []
    assert reply.usage.image_tokens > 0


def test_a_session_that_answers_elsewhere_says_so(session: Session) -> None:
    inside, go_on = threading.Event(), threading.Event()
    step = session._answers._slot._context.extend

    def held(token_id: int, cancel: Cancel) -> np.ndarray:
        inside.set()
        assert go_on.wait(30)
        return step(token_id, cancel)

    session._answers._slot._context.extend = held  # type: ignore[method-assign]
    worker = threading.Thread(target=lambda: session.ask("What?", max_tokens=3))
    worker.start()
    assert inside.wait(30)
    with pytest.raises(UsageError, match="another thread"):
        session.ask("And?")
    go_on.set()
    worker.join()


def test_an_error_leaves_the_conversation_as_it_was(session: Session, tmp_path: Path) -> None:
    first = session.ask("What is this?", images=[picture()], max_tokens=4)
    with pytest.raises(UnreadableMedia):
        session.ask("And this?", images=[tmp_path / "missing.png"])
    with pytest.raises(PromptTooLong):
        session.ask("word " * 5000)
    second = session.ask("And what colour is it?", max_tokens=2)
    assert second.usage.image_tokens == first.usage.image_tokens
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1


def test_a_system_prompt_comes_first(model: Model) -> None:
    with Session(model) as plain, Session(model, system="Answer in one word.") as told:
        without = plain.ask("What is this?", max_tokens=1).usage.prompt_tokens
        assert told.ask("What is this?", max_tokens=1).usage.prompt_tokens > without


def test_a_seed_makes_sampling_repeatable(session: Session) -> None:
    def ids(seed: int) -> list[int]:
        session.reset()
        reply = session.ask("Tell me.", temperature=1.5, seed=seed, max_tokens=12)
        return [t.id for t in reply.tokens]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_two_sessions_on_one_model_do_not_mix(model: Model) -> None:
    def alone(seed: int) -> list[int]:
        with Session(model) as session:
            reply = session.ask("What is this?", images=[picture(seed)], max_tokens=10)
            return [t.id for t in reply.tokens]

    expected = [alone(1), alone(2)]
    with Session(model) as one, Session(model) as two:
        streams = [
            one.stream("What is this?", images=[picture(1)], max_tokens=10),
            two.stream("What is this?", images=[picture(2)], max_tokens=10),
        ]
        read: list[list[int]] = [[], []]
        for _ in range(10):
            for position, stream in enumerate(streams):
                token = next(stream, None)
                if token is not None:
                    read[position].append(token.id)
    assert read == expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prompt": "  "}, "no question"),
        ({"prompt": "Hi", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "Hi", "tempo": 3}, "tempo"),
        ({"prompt": "Hi", "stop": 5}, "stop"),
        ({"prompt": "Hi", "detail": "ultra"}, "ultra"),
        ({"prompt": 123}, "int"),
        ({"prompt": b"Hi"}, "bytes"),
    ],
)
def test_wrong_usage(session: Session, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        session.ask(**arguments)  # type: ignore[arg-type]


def test_no_pictures_may_be_none(session: Session) -> None:
    assert session.ask("Hi", images=None, max_tokens=1).usage.image_tokens == 0


def test_a_system_prompt_is_text(model: Model) -> None:
    with pytest.raises(UsageError, match="system prompt"):
        Session(model, system=5)  # type: ignore[arg-type]


def test_the_cloud_is_refused_where_none_is_set_up(model: Model) -> None:
    with pytest.raises(CloudError):
        Session(model, route="cloud")


def test_an_encoder_of_another_size_is_refused(
    session: Session, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.tower._features.clear()
    monkeypatch.setattr(model.vision, "encode", lambda image, cancel: np.zeros((1, 2), np.float32))
    with pytest.raises(ModelCorrupt, match="embeddings of shape"):
        session.ask("What?", images=[picture(7)])


def test_bytes_that_are_no_picture(session: Session) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    with pytest.raises(UnreadableMedia):
        session.ask("What?", images=[buffer.getvalue()[:100]])


def test_async_gives_the_same_tokens(model: Model, session: Session) -> None:
    expected = [t.id for t in session.ask("What is this?", images=[picture()], max_tokens=6).tokens]

    async def run() -> tuple[list[int], list[int]]:
        async with AsyncSession(model) as a_session:
            reply = await a_session.ask("What is this?", images=[picture()], max_tokens=6)
            await a_session.reset()
            stream = a_session.stream("What is this?", images=[picture()], max_tokens=6)
            streamed = [token.id async for token in stream]
            assert stream.reply.text == reply.text
            return [t.id for t in reply.tokens], streamed

    assert asyncio.run(run()) == (expected, expected)


def test_cancelling_a_call_that_waits_leaves_the_answer_under_way(model: Model) -> None:
    inside, go_on = threading.Event(), threading.Event()

    async def run() -> str:
        async with AsyncSession(model) as session:
            context = session.sync._answers._slot._context
            step = context.extend

            def held(token_id: int, cancel: Cancel) -> np.ndarray:
                inside.set()
                assert go_on.wait(30)
                return step(token_id, cancel)

            context.extend = held  # type: ignore[method-assign]
            first = asyncio.create_task(session.ask("What is this?", max_tokens=4))
            await asyncio.to_thread(inside.wait, 30)
            second = asyncio.create_task(session.ask("And?", max_tokens=4))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            go_on.set()
            return (await first).finish_reason

    assert asyncio.run(run()) != "cancelled"


def test_an_async_session_may_be_closed_twice(model: Model) -> None:
    async def run() -> None:
        async with AsyncSession(model) as session:
            await session.close()

    asyncio.run(run())


def test_an_async_session_that_cannot_load_leaves_no_thread() -> None:
    failed = AsyncSession("/no/such/folder")

    async def run() -> None:
        async with failed:
            pass

    with pytest.raises(UnknownModel):
        asyncio.run(run())
    for thread in failed._worker._threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_cancelling_the_task_cancels_the_answer(model: Model) -> None:
    async def run() -> int:
        async with AsyncSession(model) as session:
            stream = session.stream("What is this?", images=[picture()], max_tokens=1000)
            await stream.__anext__()

            async def read_on() -> None:
                async for _ in stream:
                    pass

            task = asyncio.create_task(read_on())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return (await session.ask("And?", max_tokens=2)).usage.completion_tokens

    assert asyncio.run(run()) == 2


def test_a_program_may_end_while_a_daemon_thread_is_answering(smolvlm: Path) -> None:
    """The runtime would abort the process if it came back to an interpreter that is gone."""
    program = f"""
import threading
from edgevlm import Session
session = Session({str(smolvlm)!r})
begun = threading.Event()
def talk():
    for token in session.stream("Talk.", temperature=2.0, seed=1, max_tokens=100_000):
        begun.set()
threading.Thread(target=talk, daemon=True).start()
begun.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
