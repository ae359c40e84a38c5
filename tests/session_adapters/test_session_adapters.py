"""Adapters through `Session`: swapped while the base stays loaded, and nothing crosses over."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lora_factory import write_peft
from session_parts import NEXT, NOTICE, QUESTION, SYSTEM, afresh, ask, describe, picture, same

from edgevlm import AsyncSession, Model, Session, load_settings
from edgevlm import session as session_module
from edgevlm.adapters.manifest import DeclaredBase
from edgevlm.adapters.store import AdapterStore
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import DoesNotFit, UsageError
from edgevlm.messages import ActiveAdapter, Reply
from edgevlm.model import AUTO, BUILT_IN


def test_an_adapter_changes_the_answer_and_is_told(session: Session, packs: Path) -> None:
    base = ask(session)
    session.reset()
    session.use_adapters({packs / "one": 0.5})
    changed = ask(session)
    assert base.adapter == ()
    assert changed.adapter == (ActiveAdapter("one", 0.5),)
    assert json.loads(json.dumps(changed.to_dict()))["adapter"] == [{"name": "one", "scale": 0.5}]
    assert session.adapters == {"one": 0.5}
    assert not same(changed, base)
    session.reset()
    session.use_adapters(None)
    assert session.adapters == {}
    assert same(ask(session), base)


def test_a_swap_amid_a_conversation_is_a_fresh_one_with_that_adapter(
    session: Session, model: Model, packs: Path
) -> None:
    for adapter in (packs / "one", None, [packs / "two", packs / "one"]):
        ask(session)
        session.use_adapters(adapter)
        fresh = afresh(model, session, NEXT, adapter)
        swapped = ask(session, NEXT)
        assert same(swapped, fresh)
        assert swapped.usage.cached_tokens == 0
        assert ask(session, NEXT).usage.cached_tokens > swapped.usage.prompt_tokens - 2
        session.reset()


def test_without_adapters_in_the_key_a_stale_answer_would_show(
    session: Session, model: Model, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = PrefixContext._keys_of
    monkeypatch.setattr(
        PrefixContext, "_keys_of", lambda self, prompt: [((), key) for _, key in keys(self, prompt)]
    )
    ask(session)
    session.use_adapters(packs / "one")
    fresh = afresh(model, session, NEXT, packs / "one")
    assert not same(ask(session, NEXT), fresh)


def test_adapters_add_up_in_any_order(session: Session, packs: Path) -> None:
    answers = {}
    for name, choice in {
        "one": [packs / "one"],
        "both": {packs / "one": 1.0, packs / "two": -0.5},
        "turned": {packs / "two": -0.5, packs / "one": 1.0},
        "with nothing of two": {packs / "one": 1.0, packs / "two": 0.0},
    }.items():
        session.use_adapters(choice)
        answers[name] = ask(session)
        session.reset()
    assert same(answers["both"], answers["turned"])
    assert not same(answers["both"], answers["one"])
    assert same(answers["with nothing of two"], answers["one"])
    assert answers["with nothing of two"].adapter[1] == ActiveAdapter("two", 0.0)


def test_the_pictures_embeddings_are_kept_over_a_swap(
    session: Session, model: Model, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = model.vision.encode

    def counted(image: ImageInput, cancel: Cancel) -> Embeddings:
        encoded.append(image)
        return encode(image, cancel)

    model.tower._features.clear()
    monkeypatch.setattr(model.vision, "encode", counted)
    ask(session)
    session.use_adapters(packs / "one")
    assert ask(session, NEXT).usage.image_tokens > 0
    assert len(encoded) == 1


def test_a_block_adds_an_adapter_and_takes_it_back(session: Session, packs: Path) -> None:
    one, two = packs / "one", packs / "two"
    session.use_adapters(one)
    with session.adapter(two, scale=0.5):
        assert session.adapters == {"one": 1.0, "two": 0.5}
        with session.adapter(one, 0.25):
            assert session.adapters == {"two": 0.5, "one": 0.25}
        assert session.adapters == {"one": 1.0, "two": 0.5}
        with pytest.raises(UsageError), session.adapter(one, 99):
            pass
        session.use_adapters({})
    assert session.adapters == {"one": 1.0}
    with pytest.raises(KeyError), session.adapter(two):
        raise KeyError
    assert session.adapters == {"one": 1.0}


def test_one_answer_may_have_its_own(session: Session, packs: Path) -> None:
    session.use_adapters(packs / "one")
    others = [
        ask(session, adapter={packs / "two": 0.5}),
        ask(session, NEXT, adapter=[]),
    ]
    assert [reply.adapter for reply in others] == [(ActiveAdapter("two", 0.5),), ()]
    assert ask(session, NEXT).adapter == (ActiveAdapter("one", 1.0),)


def test_an_answer_under_way_keeps_its_adapters(session: Session, packs: Path) -> None:
    with session.adapter(packs / "one"):
        whole = ask(session)
        session.reset()
        stream = session.stream(QUESTION, images=[picture()], max_tokens=6)
    first = next(stream)
    session.use_adapters(packs / "two")
    assert [first, *stream] == list(stream.reply.tokens)
    assert same(stream.reply, whole)
    assert stream.reply.adapter == whole.adapter


def test_sessions_on_one_model_hold_different_adapters(model: Model, packs: Path) -> None:
    choices = ([], [packs / "one"], {packs / "one": -1.0, packs / "two": 0.5})
    alone = []
    for choice in choices:
        with Session(model, adapter=choice) as session:
            alone.append(ask(session))
    sessions = [Session(model, adapter=choice) for choice in choices]
    streams = [s.stream(QUESTION, images=[picture()], max_tokens=6) for s in sessions]
    for _ in range(7):
        for stream in streams:
            next(stream, None)
    for stream, reply in zip(streams, alone, strict=True):
        assert same(stream.reply, reply)
    for session in sessions:
        session.reset()
    with ThreadPoolExecutor(len(sessions)) as threads:
        for reply, other in zip(threads.map(ask, sessions), alone, strict=True):
            assert same(reply, other)
    for session in sessions:
        session.close()


def test_its_own_scale_and_system_prompt_hold_where_none_is_given(
    model: Model, packs: Path
) -> None:
    with Session(model, adapter=packs / "told") as session:
        told = ask(session)
        assert told.adapter == (ActiveAdapter("told", 0.5),)
    for others in (
        {"adapter": {packs / "told": None}, "system": SYSTEM},
        {"adapter": {packs / "told": 0.5}},
    ):
        with Session(model, **others) as session:  # type: ignore[arg-type]
            assert same(ask(session), told)
    shorter = []
    for others in (
        {"adapter": packs / "told", "system": ""},
        {"adapter": [packs / "told", packs / "one"]},
        {"adapter": {packs / "told": 0}},
        {"adapter": packs / "one"},
    ):
        with Session(model, **others) as session:  # type: ignore[arg-type]
            shorter.append(ask(session).usage.prompt_tokens)
    assert len(set(shorter)) == 1
    assert shorter[0] < told.usage.prompt_tokens


def test_every_answer_carries_the_notices_of_its_adapters(session: Session, packs: Path) -> None:
    told = packs / "told"
    assert ask(session).notices == ()
    session.use_adapters([packs / "one", told])
    stream = session.stream(NEXT, max_tokens=2)
    next(stream)
    session.use_adapters(None)
    assert list(stream)
    assert stream.reply.notices == (NOTICE,)
    assert json.loads(json.dumps(stream.reply.to_dict()))["notices"] == [NOTICE]
    assert ask(session, NEXT, adapter=told).notices == (NOTICE,)
    assert ask(session, NEXT, adapter={told: 0}).notices == ()


def test_an_installed_adapter_goes_by_its_name(model: Model, packs: Path) -> None:
    AdapterStore(load_settings()).install(str(packs / "told"))
    with Session(model, adapter="told:0.25") as session:
        assert ask(session).adapter == (ActiveAdapter("told", 0.25),)


def test_async_has_all_of_it(model: Model, packs: Path) -> None:
    one, two = packs / "one", packs / "two"

    async def run() -> list[Reply]:
        async with AsyncSession(model, adapter=one) as session:
            replies = [await session.ask(QUESTION, images=[picture()], max_tokens=6)]
            async with session.adapter(two, 0.5):
                assert session.adapters == {"one": 1.0, "two": 0.5}
                replies.append(await session.ask(NEXT, max_tokens=6))
            stream = session.stream(NEXT, max_tokens=6, adapter={})
            assert [token async for token in stream]
            replies.append(stream.reply)
            with pytest.raises(UsageError):
                await session.use_adapters({one: 11})
            await session.use_adapters(two)
            assert session.adapters == {"two": 1.0}
            replies.append(await session.ask(NEXT, max_tokens=6, adapter=packs / "told"))
            return replies

    with Session(model, adapter=one) as session:
        expected = [ask(session)]
        with session.adapter(two, 0.5):
            expected.append(ask(session, NEXT))
        expected.append(ask(session, NEXT, adapter={}))
        expected.append(ask(session, NEXT, adapter=packs / "told"))
    for reply, other in zip(asyncio.run(run()), expected, strict=True):
        assert same(reply, other)
        assert (reply.adapter, reply.notices) == (other.adapter, other.notices)
    assert expected[-1].notices == (NOTICE,)


def test_an_adapter_brings_its_model_where_none_is_asked_for(
    packs: Path, smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def noted(name: str, **options: object) -> Model:
        names.append(name)
        raise DoesNotFit("Not here.", hint="None.")

    monkeypatch.setattr(session_module, "load_model", noted)
    made_for_tiny = write_peft(tmp_path / "mine", smolvlm_source)
    describe(made_for_tiny, bases=(DeclaredBase(BUILT_IN),))
    for model, adapter in (
        (None, made_for_tiny),
        (None, [packs / "one", made_for_tiny]),
        (None, packs / "one"),
        ("smolvlm-256m", made_for_tiny),
    ):
        with pytest.raises(DoesNotFit):
            Session(model, adapter=adapter)
    assert names == [BUILT_IN, AUTO, AUTO, "smolvlm-256m"]
