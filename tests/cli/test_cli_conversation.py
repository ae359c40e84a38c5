"""The conversation mode of `edgevlm chat`, its lines typed by the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgevlm import Session
from edgevlm.cli.conversation import converse


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def type_in(*lines: str) -> None:
        left = iter([*lines, "/quit"])
        monkeypatch.setattr("builtins.input", lambda _: next(left))

    return type_in


def test_another_model_is_opened_as_the_first_was_and_can_be_called_off(
    smolvlm: Path, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: list[str] = []

    def reopen(name: str) -> Session:
        wanted.append(name)
        if name == "slow":
            raise KeyboardInterrupt
        return Session(str(smolvlm))

    typed("/model slow", "Hello", "/model other", "Hello")
    with Session(str(smolvlm)) as session:
        converse(session, reopen, [], {"max_tokens": 2})
    out, err = capsys.readouterr()
    assert wanted == ["slow", "other"]
    assert "Stopped." in err
    assert err.count("first token") == 2
    assert "a new conversation" in out


def test_a_picture_is_found_under_the_name_that_a_terminal_pastes(
    smolvlm: Path, tmp_path: Path, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my photo.png"
    Image.new("RGB", (8, 8)).save(path)
    pasted = str(path).replace(" ", "\\ ")
    typed(f"/image {pasted}", f"/image '{path}'", f"/image {path}", f"/image {pasted} please")
    with Session(str(smolvlm)) as session:
        converse(session, Session, [], {})
    out, err = capsys.readouterr()
    assert out.count("Shown with your next question.") == 3
    assert err.count("error: There is no file") == 1
