"""Which adapters a model keeps in memory: each once, and no longer than somebody wants it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_factory import write_peft
from session_parts import NEXT, QUESTION, ask, describe, picture, same

from edgevlm import AsyncSession, Model, Session, load_settings
from edgevlm.adapters import resident
from edgevlm.adapters.resident import Residents
from edgevlm.adapters.store import AdapterStore
from edgevlm.engine.adapter import LoadedAdapter, Lora


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
