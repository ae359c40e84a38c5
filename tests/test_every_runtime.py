"""What holds on every runtime that runs here: reuse that changes nothing, no stale reuse, cancel.

Each runtime has its own tests beside it in `tests/runtimes/`; these say the same of all,
through `Session` and on one random-weight model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgevlm import Session
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import ImageInput, Prompt
from edgevlm.families.base import Turn
from edgevlm.messages import Reply
from edgevlm.model import Model, load_model

RUNTIMES = ("onnx", "llamacpp", "mlx", "onnx+llamacpp", "mlx+onnx", "llamacpp+mlx")
# Prefill in other chunks sums in another order: float32, and logits with a deviation of 3.
CHUNKING = 2e-3
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module", params=RUNTIMES)
def model(request: pytest.FixtureRequest, smolvlm_everywhere: Path) -> Iterator[Model]:
    with load_model(str(smolvlm_everywhere), runtime=request.param) as model:
        assert "+".join(dict.fromkeys(model.runtime.values())) == request.param
        yield model


def picture(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ask(session: Session, *pictures: np.ndarray, question: str = QUESTION) -> Reply:
    return session.ask(question, images=list(pictures), max_tokens=4)


def logits_of(model: Model, context: PrefixContext, prompt: Prompt) -> np.ndarray:
    logits, _ = context.prefill(prompt, lambda i: model.embed(prompt.images[i], Cancel()), Cancel())
    return logits


def afresh(model: Model, prompt: Prompt) -> np.ndarray:
    context = PrefixContext(model.language.new_context())
    try:
        return logits_of(model, context, prompt)
    finally:
        context.close()


def test_a_follow_up_is_what_a_cold_run_would_be(model: Model) -> None:
    image = model.family.preprocess(picture(1, 150, 200))
    first = [Turn("user", (image, QUESTION))]
    turns = [*first, Turn("assistant", ("A cup.",)), Turn("user", ("And what colour is it?",))]
    context = PrefixContext(model.language.new_context())
    cold = logits_of(model, context, model.family.render(first))
    before = context.length
    again = logits_of(model, context, model.family.render(turns))
    assert context.length > before
    np.testing.assert_allclose(again, afresh(model, model.family.render(turns)), atol=CHUNKING)
    back = logits_of(model, context, model.family.render(first))
    np.testing.assert_allclose(back, cold, atol=CHUNKING)
    context.close()


def changed_picture(model: Model) -> tuple[list[Turn], list[Turn]]:
    one, other = (model.family.preprocess(picture(seed)) for seed in (1, 2))
    return [Turn("user", (one, QUESTION))], [Turn("user", (other, QUESTION))]


def changed_system_prompt(model: Model) -> tuple[list[Turn], list[Turn]]:
    image = model.family.preprocess(picture(1))
    question = Turn("user", (image, QUESTION))
    return (
        [Turn("system", ("Answer in one word.",)), question],
        [Turn("system", ("Answer in two words.",)), question],
    )


def changed_preprocessing(model: Model) -> tuple[list[Turn], list[Turn]]:
    # The same tokens in the same places: only what the rows hold is another.
    pixels = picture(1, 200, 300)
    low = model.family.preprocess(pixels, "low")
    shifted = model.family.preprocess(np.roll(pixels, 40, axis=1), "low")
    assert low.n_tokens == shifted.n_tokens
    return [Turn("user", (low, QUESTION))], [Turn("user", (shifted, QUESTION))]


CHANGES = (changed_picture, changed_system_prompt, changed_preprocessing)


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_reused(
    model: Model, change: Callable[[Model], tuple[list[Turn], list[Turn]]]
) -> None:
    old, new = (model.family.render(turns) for turns in change(model))
    context = PrefixContext(model.language.new_context())
    before = logits_of(model, context, old)
    after = logits_of(model, context, new)
    expected = afresh(model, new)
    np.testing.assert_allclose(after, expected, atol=CHUNKING)
    assert np.abs(before - expected).max() > 50 * CHUNKING  # or staleness would not show
    context.close()


def test_without_the_pictures_key_a_stale_answer_would_show(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (model.family.render(turns) for turns in changed_picture(model))
    keys = Prompt.keys
    monkeypatch.setattr(
        Prompt, "keys", lambda self: [k[1] if isinstance(k, tuple) else k for k in keys(self)]
    )
    context = PrefixContext(model.language.new_context())
    logits_of(model, context, old)
    stale = logits_of(model, context, new)
    monkeypatch.undo()
    assert np.abs(stale - afresh(model, new)).max() > 50 * CHUNKING
    context.close()


def test_detail_changes_the_pictures_key(model: Model) -> None:
    pixels = picture(1, 200, 300)
    keys = {model.family.preprocess(pixels, detail).key for detail in ("low", "high")}  # type: ignore[arg-type]
    assert len(keys) == 2


def test_a_cancelled_answer_leaves_the_session_as_it_was(model: Model) -> None:
    session, untouched = Session(model), Session(model)
    for cancel_at in (0, 2):
        stream = session.stream(QUESTION, images=[picture(7)], max_tokens=8)
        for _ in range(cancel_at):
            next(stream)
        session.cancel()
        assert list(stream) == []
        assert stream.reply.finish_reason == "cancelled"
        session.reset()
    assert ask(session, picture(8)).text == ask(untouched, picture(8)).text


def test_a_session_in_another_thread_answers_the_same(model: Model) -> None:
    here = ask(Session(model), picture(3))
    there: list[Reply] = []
    thread = threading.Thread(target=lambda: there.append(ask(Session(model), picture(3))))
    thread.start()
    thread.join()
    assert [t.id for t in there[0].tokens] == [t.id for t in here.tokens]


def test_sessions_on_one_model_do_not_meet(model: Model) -> None:
    one, other = Session(model), Session(model)
    expected = [ask(Session(model), picture(seed)).text for seed in (4, 5)]
    assert [ask(one, picture(4)).text, ask(other, picture(5)).text] == expected
    follow_ups = [ask(s, question="And now?").usage for s in (one, other)]
    assert all(usage.cached_tokens > 0 for usage in follow_ups)


def test_the_embeddings_are_as_many_as_the_slots(model: Model) -> None:
    image: ImageInput = model.family.preprocess(picture(6, 130, 250), "high")
    rows = model.embed(image, Cancel())
    assert rows.shape == (image.n_tokens, model.language.d_model)
    assert rows.dtype == np.float32
