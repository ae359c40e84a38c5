"""Adapters in `edgevlm chat`: on the command line, and amid a conversation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_factory import write_peft
from pack_factory import change_manifest, seal

from edgevlm import Session, load_settings
from edgevlm.adapters.store import AdapterStore
from edgevlm.cli import run
from edgevlm.cli.conversation import converse

NOTICE = "Not a diagnosis."
Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def packs(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one` and `two`, `careful` with a notice, and `wide` for a larger model."""
    folder = tmp_path_factory.mktemp("packs")
    config = json.loads((smolvlm_source / "config.json").read_text())["text_config"]
    write_peft(folder / "one", config, seed=1)
    write_peft(folder / "two", config, seed=2)
    write_peft(folder / "wide", config | {"hidden_size": 2 * config["hidden_size"]})
    careful = write_peft(folder / "careful", config, seed=3)
    (careful / "README.md").write_text("# Careful\n", encoding="utf-8")
    seal(careful, name="careful")
    change_manifest(careful, notice=NOTICE)
    return folder


@pytest.fixture
def chat(smolvlm_everywhere: Path, edgevlm: Chat) -> Chat:
    """`edgevlm chat Hello` on llama.cpp."""

    def call(*arguments: str, model: str = str(smolvlm_everywhere)) -> tuple[int, str, str]:
        fixed = ("--model", model, "--runtime", "llamacpp", "--max-tokens", "4")
        return edgevlm("chat", "Hello", *fixed, *arguments)

    return call


def test_adapters_are_in_the_json_and_in_the_answer(chat: Chat, packs: Path) -> None:
    one, two = str(packs / "one"), str(packs / "two")
    told = []
    for adapters in ([], ["--adapter", one], ["--adapter", f"{one}:0.5", "--adapter", f"{two}:-1"]):
        code, out, err = chat(*adapters, "--json", "--tokens")
        assert (code, err) == (0, "")
        told.append(json.loads(out))
    assert [reply["adapter"] for reply in told] == [
        [],
        [{"name": "one", "scale": 1.0}],
        [{"name": "one", "scale": 0.5}, {"name": "two", "scale": -1.0}],
    ]
    assert len({reply["tokens"][0]["logprob"] for reply in told}) == 3


def test_a_notice_stands_below_every_answer(chat: Chat, packs: Path, tmp_path: Path) -> None:
    careful = ("--adapter", str(packs / "careful"))
    reply = json.loads(chat(*careful, "--json")[1])
    assert reply["notices"] == [NOTICE]
    code, out, err = chat(*careful, "--adapter", str(packs / "one"))
    assert (code, out.splitlines()[-1], err) == (0, NOTICE, "")
    assert NOTICE not in chat("--adapter", str(packs / "one"))[1]
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    code, out, err = chat(*careful, "--schema", str(schema), "--max-tokens", "40")
    assert (code, json.loads(out) in ("yes", "no"), err) == (0, True, f"{NOTICE}\n")


def test_a_notice_stands_below_every_answer_of_a_conversation(
    smolvlm_everywhere: Path,
    packs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = iter(["Hello", "And?", "/adapter none", "Hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    path = str(smolvlm_everywhere)
    with Session(path, runtime="llamacpp", adapter=packs / "careful") as session:
        converse(session, Session, [], {"max_tokens": 2})
    out, err = capsys.readouterr()
    assert out.splitlines().count(NOTICE) == 2
    assert err.count("first token") == 3


def test_an_installed_one_goes_by_its_name(chat: Chat, packs: Path) -> None:
    AdapterStore(load_settings()).install(str(packs / "one"))
    _, out, _ = chat("--adapter", "one:0.8", "--json")
    assert json.loads(out)["adapter"] == [{"name": "one", "scale": 0.8}]


@pytest.mark.parametrize(
    ("adapters", "code", "what"),
    [
        (["medcial"], 3, "There is no adapter 'medcial'"),
        (["one:high"], 2, "The scale of adapter one can't be 'high'"),
        (["one:99"], 2, "The scale of adapter one can't be 99"),
        (["one", "one:0.5"], 2, "Adapter one is given twice"),
    ],
)
def test_what_can_not_be_is_refused_before_a_model_is_looked_for(
    chat: Chat, adapters: list[str], code: int, what: str
) -> None:
    given = [word for adapter in adapters for word in ("--adapter", adapter)]
    left, out, err = chat(*given, model="/no/such/model")
    assert (left, out) == (code, "")
    error, hint = err.splitlines()
    assert error.startswith(f"error: {what}")
    assert hint.startswith("hint: ")


def test_one_of_another_base_is_refused_with_both_sizes(chat: Chat, packs: Path) -> None:
    code, out, err = chat("--adapter", str(packs / "wide"))
    assert (code, out) == (3, "")
    assert "wide" in err.splitlines()[0]
    assert len(err.splitlines()) == 2


def test_amid_a_conversation(
    smolvlm_everywhere: Path,
    packs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = str(packs / "one"), str(packs / "two")
    AdapterStore(load_settings()).install(one)
    lines = iter(
        [
            *("/adapter", "/adapter one:0.5", "Hello", f"/adapter one {two}:-2", "Hello"),
            *("/adapter nothing", f"/adapter {packs / 'wide'}", "/adapter one:x", "/adapter"),
            *("/model other", "/adapter none", "/quit"),
        ]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))

    def open_session(_: str) -> Session:
        return Session(str(smolvlm_everywhere), runtime="llamacpp")

    with open_session("") as session:
        converse(session, open_session, [], {"max_tokens": 2})
    out, err = capsys.readouterr()
    assert "on llamacpp. /help" in out
    assert [line for line in out.splitlines() if line.startswith(("On:", "Installed:"))] == [
        "On: none.",
        "Installed: one.",
        "On: one:0.5.",
        "On: one, two:-2.",
        "On: one, two:-2.",
        "Installed: one.",
        "On: none.",
    ]
    assert "a new conversation without adapters" in out
    receipts = [line for line in err.splitlines() if "first token" in line]
    assert [" one:0.5 ·" in receipts[0], " one · two:-2 ·" in receipts[1]] == [True, True]
    assert err.count("error: ") == err.count("hint: ") == 3


def test_a_folder_with_a_space_is_quoted_as_in_a_shell(
    smolvlm_everywhere: Path,
    packs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("one", "two"):
        shutil.copytree(packs / name, tmp_path / f"my {name}")
    one, two = tmp_path / "my one", tmp_path / "my two"
    escaped = str(two).replace(" ", "\\ ")
    lines = iter(
        [
            *(f"/adapter '{one}:0.5' {escaped}", f'/adapter "{two}"', f"/adapter '{one}"),
            *(f"/adapter '{one}' '{two}'", "/quit"),
        ]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    with Session(str(smolvlm_everywhere), runtime="llamacpp") as session:
        converse(session, Session, [], {})
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("On:")] == [
        "On: my-one:0.5, my-two.",
        "On: my-two.",
        "On: my-one, my-two.",
    ]
    assert err.startswith(f"error: A quote in '{one} is never closed.\nhint: ")


def test_a_conversation_begins_with_those_of_the_command_line(
    smolvlm_everywhere: Path,
    packs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "/quit")
    adapters = [f"{packs / 'one'}:0.5", str(packs / "two")]
    with Session(str(smolvlm_everywhere), runtime="llamacpp", adapter=adapters) as session:
        converse(session, Session, [], {})
    assert "on llamacpp with one:0.5, two. /help" in capsys.readouterr().out


def test_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--adapter NAME[:SCALE]" in out
    assert "--adapter medical:0.8" in out
