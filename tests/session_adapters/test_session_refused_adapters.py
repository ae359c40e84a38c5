"""Adapters that a session refuses, and that nothing is left of then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_factory import write_peft
from session_parts import NEXT, ask, describe

from edgevlm import Model, Session
from edgevlm.adapters.manifest import DeclaredBase
from edgevlm.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    EdgeVLMError,
    UnknownAdapter,
    UsageError,
)


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
