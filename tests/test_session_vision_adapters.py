"""Adapters of the vision encoder through `Session`: what a picture looks like never crosses over.

On every placement whose vision encoder takes them, with random SmolVLM weights and adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_factory import write_peft
from vision_adapters import tower_modules

from edgevlm import Model, Session, load_model
from edgevlm.engine.adapter import Adapters
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, adaptable
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import NotSupported
from edgevlm.messages import Reply

PLACEMENTS = ("onnx", "mlx", "onnx+llamacpp")
QUESTION, NEXT = "What is in the picture?", "And what colour is it?"
TOWER = ("out_proj", "fc1", "fc2", "proj")


@pytest.fixture(scope="module", params=PLACEMENTS)
def model(request: pytest.FixtureRequest, smolvlm_everywhere: Path) -> Iterator[Model]:
    with load_model(str(smolvlm_everywhere), runtime=request.param) as model:
        yield model


@pytest.fixture(scope="module")
def packs(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one` and `two` change the vision encoder alone, `both` it and the decoder, and
    `decoder` that alone."""
    folder = tmp_path_factory.mktemp("packs")
    tower = tower_modules(smolvlm_source)
    seeing = {name: size for name, size in tower.items() if name.rpartition(".")[2] in TOWER}
    for seed, name in enumerate(("one", "two")):
        write_peft(folder / name, smolvlm_source, targets=TOWER, extra=seeing, seed=seed)
    write_peft(folder / "both", smolvlm_source, extra=tower, seed=2)
    write_peft(folder / "decoder", smolvlm_source, seed=2)
    return folder


@pytest.fixture
def encoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The adapters of every picture that is encoded, by name."""
    seen: list[dict[str, float]] = []
    encode_with = adaptable(model.vision, "any").encode_with

    def noted(image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        seen.append({adapter.name: scale for adapter, scale in adapters.items()})
        return encode_with(image, adapters, cancel)

    model.tower._features.clear()
    monkeypatch.setattr(model.vision, "encode_with", noted)  # which `encode` is made of
    return seen


def ask(session: Session, question: str = QUESTION, **options: Any) -> Reply:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    images = [pixels] if question == QUESTION else []
    return session.ask(question, images=images, max_tokens=6, **options)


def afresh(model: Model, before: Session, question: str, adapter: Any) -> Reply:
    """The next answer of a conversation in which nothing is computed yet."""
    model.tower._features.clear()
    with Session(model, adapter=adapter) as session:
        session._spoken += before._spoken
        return ask(session, question)


def same(one: Reply, other: Reply) -> bool:
    """The same tokens, but for what prefill in other chunks or another order of sums does."""
    ids = [[token.id for token in reply.tokens] for reply in (one, other)]
    logprobs = [[token.logprob for token in reply.tokens] for reply in (one, other)]
    return ids[0] == ids[1] and np.allclose(*logprobs, rtol=0, atol=2e-3)


def choices(packs: Path) -> list[Any]:
    one, two = packs / "one", packs / "two"
    return [one, None, {one: 0.5}, [two, one], packs / "both", packs / "decoder", two]


def test_a_swap_amid_a_conversation_is_a_fresh_one_with_that_adapter(
    model: Model, packs: Path
) -> None:
    with Session(model) as session:
        replies = [ask(session)]
        for adapter in choices(packs):
            session.use_adapters(adapter)
            fresh = afresh(model, session, QUESTION, adapter)
            turns = list(session._spoken)
            replies.append(ask(session))
            assert same(replies[-1], fresh)
            assert replies[-1].usage.cached_tokens == 0
            assert ask(session, NEXT).usage.cached_tokens > replies[-1].usage.prompt_tokens - 2
            session._spoken[:] = turns
    logprobs = {reply.tokens[0].logprob for reply in replies[1:]}
    assert len(logprobs) == len(choices(packs))


def test_features_kept_by_the_picture_alone_would_cross(
    model: Model, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(model) as session:
        ask(session)
        session.use_adapters(packs / "one")
        fresh = afresh(model, session, NEXT, packs / "one")
        model.tower._features.clear()
        ask(session, adapter=[])
        session._spoken[2:] = []
        monkeypatch.setattr("edgevlm.tower.adapters_key", lambda adapters: ())
        assert not same(ask(session, NEXT), fresh)


def test_a_picture_is_encoded_once_for_each_way_to_see_it(
    model: Model, packs: Path, encoded: list[dict[str, float]]
) -> None:
    one, two = packs / "one", packs / "two"
    adapters: list[Any] = [one, None, {one: 0.5, two: 1.0}, {two: 0}, packs / "decoder"]
    with Session(model) as session, Session(model) as other:
        ask(session)
        for adapter in 2 * adapters:
            session.use_adapters(adapter)
            ask(session, NEXT)
            other.reset()
            other.use_adapters(adapter)
            ask(other)
    assert encoded == [{}, {"one": 1.0}, {"one": 0.5, "two": 1.0}]


def test_without_the_adapter_it_is_the_base_again(model: Model, packs: Path) -> None:
    with Session(model) as session:
        base = ask(session)
        session.reset()
        assert not same(ask(session, adapter=packs / "one"), base)
        session.reset()
        model.tower._features.clear()
        again = ask(session)
    assert [t.logprob for t in again.tokens] == [t.logprob for t in base.tokens]


def test_sessions_of_one_model_see_differently_at_once(model: Model, packs: Path) -> None:
    adapters = [None, packs / "one", packs / "two", packs / "both"]
    expected = []
    for adapter in adapters:
        with Session(model, adapter=adapter) as session:
            expected.append([ask(session), ask(session, NEXT)])
    sessions = [Session(model, adapter=adapter) for adapter in adapters]

    def run(session: Session) -> list[Reply]:
        found = []
        for _ in range(3):
            model.tower._features.clear()
            session.reset()
            found = [ask(session), ask(session, NEXT)]
        return found

    with ThreadPoolExecutor(len(sessions)) as pool:
        for found, wanted in zip(pool.map(run, sessions), expected, strict=True):
            assert all(map(same, found, wanted))
    for session in sessions:
        session.close()


def test_where_the_encoder_can_not_the_adapter_is_refused(
    smolvlm_everywhere: Path, packs: Path
) -> None:
    with (
        load_model(str(smolvlm_everywhere), runtime="llamacpp") as model,
        Session(model, adapter=packs / "decoder") as session,
    ):
        first = ask(session)
        for name in ("one", "both"):
            refusal = f"The adapter {name} changes the vision tower, which .* llamacpp can't"
            with pytest.raises(NotSupported, match=refusal) as raised:
                session.use_adapters(packs / name)
            assert "--runtime onnx+llamacpp" in (raised.value.hint or "")
            with pytest.raises(NotSupported):
                ask(session, NEXT, adapter=packs / name)
        assert session.adapters == {"decoder": 1.0}
        assert ask(session, NEXT).usage.cached_tokens >= first.usage.prompt_tokens - 1
