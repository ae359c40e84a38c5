"""The conversation mode of `edgevlm chat`, its lines typed by the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from video_factory import make_video

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


def test_a_video_and_how_finely_to_look(
    smolvlm: Path, tmp_path: Path, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    clip, photo = tmp_path / "clip.mp4", tmp_path / "photo.png"
    clip.write_bytes(make_video(frames=30))
    Image.new("RGB", (300, 200)).save(photo)
    typed(
        *("/video", "/video nowhere.mp4", f"/video {photo}", f"/video '{clip}'", "What happens?"),
        *("/detail", "/detail ultra", "/detail low", f"/image {photo}", "What is it?"),
    )
    with Session(str(smolvlm)) as session:
        converse(session, Session, [], {"max_tokens": 2, "detail": "auto"})
        parts = [part for spoken in session._spoken for part in spoken.turn().content]
    out, err = capsys.readouterr()
    grids = [part.grid for part in parts if not isinstance(part, str)]
    assert grids == [(0, 0)] * 4  # three frames and the picture
    assert err.count("error: ") == 4
    assert "auto\nlow\n" in out


def test_a_video_on_the_command_line_is_described_first(
    smolvlm: Path, tmp_path: Path, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(make_video(frames=30))
    typed()
    with Session(str(smolvlm)) as session:
        converse(session, Session, [], {"max_tokens": 2}, str(clip))
        assert session._spoken[0].parts[-1] == "Describe this video."
    assert capsys.readouterr().err.count("first token") == 1
