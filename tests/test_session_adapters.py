"""Adapters through `Session`: swapped while the base stays loaded, and nothing crosses over.

On every runtime that applies them, with random SmolVLM weights and random adapters.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_factory import write_peft

from edgevlm import AsyncSession, Model, Session, load_model, load_settings
from edgevlm.adapters import resident
from edgevlm.adapters.manifest import AdapterFile, DeclaredBase, manifest_of, write_manifest
from edgevlm.adapters.resident import Residents
from edgevlm.adapters.store import AdapterStore
from edgevlm.engine.adapter import LoadedAdapter, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    EdgeVLMError,
    UnknownAdapter,
    UsageError,
)
from edgevlm.messages import ActiveAdapter, Reply

RUNTIMES = ("llamacpp", "mlx", "onnx")
SYSTEM = "Answer in one word."
NOTICE = "Not a diagnosis."
QUESTION, NEXT = "What is in the picture?", "And what colour is it?"


@pytest.fixture(scope="module", params=RUNTIMES)
def model(request: pytest.FixtureRequest, smolvlm_everywhere: Path) -> Iterator[Model]:
    with load_model(str(smolvlm_everywhere), runtime=request.param) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model) as session:
        yield session


@pytest.fixture(scope="module")
def packs(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one`, `two` and `told`, which brings a system prompt and a notice."""
    folder = tmp_path_factory.mktemp("packs")
    for seed, name in enumerate(("one", "two", "told")):
        write_peft(folder / name, smolvlm_source, seed=seed)
    describe(folder / "told", system=SYSTEM, scale=0.5, notice=NOTICE)
    return folder


def describe(folder: Path, **fields: Any) -> None:
    files = {
        path.name: AdapterFile(path.stat().st_size, sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    manifest = replace(manifest_of(folder), description="Random.", files=files, **fields)
    write_manifest(folder, manifest)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def ask(session: Session, question: str = QUESTION, **options: Any) -> Reply:
    images = [picture()] if question == QUESTION else []
    return session.ask(question, images=images, max_tokens=6, **options)


def same(one: Reply, other: Reply) -> bool:
    """The same tokens, but for what prefill in other chunks or another order of sums does."""
    ids = [[token.id for token in reply.tokens] for reply in (one, other)]
    logprobs = [[token.logprob for token in reply.tokens] for reply in (one, other)]
    return ids[0] == ids[1] and np.allclose(*logprobs, rtol=0, atol=2e-3)


def afresh(model: Model, before: Session, question: str, adapter: Any) -> Reply:
    """The next answer of a conversation in which nothing is computed yet."""
    with Session(model, adapter=adapter) as session:
        session._turns += before._turns
        return ask(session, question)


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


@pytest.fixture
def loads(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """The adapters that the runtime loads from now on, none resident from before."""
    seen: list[weakref.ref[Any]] = []
    load = model.language.load_adapter

    def noted(lora: Lora) -> LoadedAdapter:
        loaded = load(lora)
        seen.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(model.language, "load_adapter", noted)
    residents = Residents(model.vision, model.language, model.files)
    monkeypatch.setattr(model, "_residents", residents)
    yield seen
    residents.close()


def test_an_adapter_is_loaded_once_for_all_who_ask_at_once(
    model: Model, packs: Path, loads: list[weakref.ref[Any]]
) -> None:
    start = threading.Barrier(8)
    found = []

    def look() -> None:
        start.wait()
        found.append(model.adapter(packs / "one"))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(loads) == len(set(found)) == 1


def test_what_is_held_stays_and_of_the_others_the_last_used(
    model: Model, packs: Path, loads: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "KEPT_BYTES", 1)
    one, two, told = (packs / name for name in ("one", "two", "told"))

    def alive() -> list[bool]:
        gc.collect()
        return [loaded() is not None for loaded in loads]

    with Session(model, adapter=one) as session:
        with session.adapter(two), session.adapter(told):
            ask(session)
            assert model.adapter(one) is model.adapter(one)
            assert alive() == [True, True, True]
        assert alive() == [True, True, True]  # until the context takes up another set
        ask(session, NEXT)
        assert alive() == [True, False, False]
        with Session(model, adapter=two) as other:
            ask(other)
            assert alive() == [True, False, False, True]
    assert alive() == [False, False, False, True]


@pytest.mark.parametrize("begun", [True, False])
def test_a_closed_session_keeps_no_adapter_of_an_unfinished_answer(
    model: Model,
    packs: Path,
    loads: list[weakref.ref[Any]],
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
) -> None:
    monkeypatch.setattr(resident, "KEPT_BYTES", 1)
    session = Session(model, adapter=packs / "one")
    stream = session.stream(QUESTION, images=[picture()], max_tokens=6)
    if begun:
        next(stream)
    session.close()
    with Session(model, adapter=packs / "two"):
        gc.collect()
        assert [loaded() is not None for loaded in loads] == [False, True]
    assert list(stream) == []


def test_a_session_may_be_closed_within_a_block(model: Model, packs: Path) -> None:
    async def run() -> None:
        async with AsyncSession(model) as session, session.adapter(packs / "two"):
            await session.close()

    with Session(model, adapter=packs / "one") as session, session.adapter(packs / "two"):
        session.close()
    assert session.adapters == {}
    asyncio.run(run())


def test_an_adapter_whose_files_changed_is_read_anew(
    model: Model, smolvlm_source: Path, tmp_path: Path
) -> None:
    folder = write_peft(tmp_path / "mine", smolvlm_source, seed=5)
    with Session(model, adapter=folder) as session:
        before = ask(session)
        write_peft(folder, smolvlm_source, seed=6, rank=4)
        session.reset()
        assert same(ask(session), before)
        session.use_adapters(folder)
        session.reset()
        assert not same(ask(session), before)


def test_one_that_is_replaced_while_it_is_loaded_is_of_one_version(
    model: Model, smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, load = AdapterStore(load_settings()), AdapterStore.load
    for version in range(2):
        write_peft(tmp_path / str(version) / "mine", smolvlm_source, seed=version)
        describe(tmp_path / str(version) / "mine", scale=0.25 * (version + 1))
    store.install(str(tmp_path / "0" / "mine"))

    def load_late(store: AdapterStore, name: str) -> Lora:
        store.install(str(tmp_path / "1" / "mine"))
        return load(store, name)

    monkeypatch.setattr(AdapterStore, "load", load_late)
    found = model.adapter("mine")
    assert found.scale == 0.5
    assert found.decoder is not None
    assert found.decoder.digest == load(store, "mine").digest


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


def another_base(folder: Path, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())["text_config"]
    write_peft(folder, config | {"hidden_size": 2 * config["hidden_size"]})


def named_for_another(folder: Path, source: Path) -> None:
    write_peft(folder, source)
    describe(folder, bases=(DeclaredBase("random/other", "0123456789abcdef"),))


def cut_short(folder: Path, source: Path) -> None:
    weights = write_peft(folder, source) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def missing(folder: Path, source: Path) -> None: ...


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (another_base, AdapterMismatch),
        (named_for_another, AdapterMismatch),
        (cut_short, AdapterCorrupt),
        (missing, UnknownAdapter),
    ],
)
def test_an_adapter_that_is_refused_leaves_all_as_it_was(
    session: Session,
    packs: Path,
    smolvlm_source: Path,
    tmp_path: Path,
    spoil: Callable[[Path, Path], None],
    error: type[EdgeVLMError],
) -> None:
    bad = tmp_path / "bad"
    spoil(bad, smolvlm_source)
    session.use_adapters({packs / "one": 0.5})
    first = ask(session)
    with pytest.raises(error):
        session.use_adapters([packs / "two", bad])
    with pytest.raises(error), session.adapter(bad):
        pass
    with pytest.raises(error):
        ask(session, NEXT, adapter=bad)
    assert session.adapters == {"one": 0.5}
    second = ask(session, NEXT)
    assert second.adapter == first.adapter
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1


def test_what_can_not_be_meant_is_refused(session: Session, packs: Path) -> None:
    one = packs / "one"
    for choice in ({one: 11}, [one, one], [one, str(one)], f"{one}:half", 5):
        with pytest.raises(UsageError):
            session.use_adapters(choice)  # type: ignore[arg-type]
    assert session.adapters == {}


def test_a_name_that_nobody_knows_costs_no_model() -> None:
    with pytest.raises(UnknownAdapter, match="medcial"):
        Session("/no/such/folder", adapter="medcial:0.5")


def test_a_session_that_fails_lets_its_model_go(
    smolvlm_everywhere: Path,
    smolvlm_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = []
    close = Model.close
    monkeypatch.setattr(Model, "close", lambda model: (closed.append(model), close(model)))
    another_base(tmp_path / "bad", smolvlm_source)
    with pytest.raises(AdapterMismatch):
        Session(str(smolvlm_everywhere), runtime="llamacpp", adapter=tmp_path / "bad")
    assert len(closed) == 1


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
