"""The token of this device's server: made once, its owner's alone, and in nobody's log."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from edgevlm.errors import EdgeVLMError, SettingsError
from edgevlm.remote import access
from edgevlm.remote.access import ENVIRONMENT, AccessToken, access_token, known_token

CANARY = "canary-0123456789abcdef"
posix = os.name == "posix"


def token_file(home: Path) -> Path:
    return home / "serve" / "token"


def write(home: Path, text: str | bytes, mode: int = 0o600) -> Path:
    file = token_file(home)
    file.parent.mkdir(parents=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(mode)
    return file


def test_the_first_start_makes_it_and_later_ones_read_it(home: Path) -> None:
    first = access_token(home, {})
    assert first.new
    assert first.file == token_file(home)
    assert len(first.value) >= 43  # 32 random bytes
    again = access_token(home, {})
    assert not again.new
    assert again.value == first.value == known_token(home, {})
    assert [file.name for file in token_file(home).parent.iterdir()] == ["token"]


def test_homes_have_tokens_of_their_own(tmp_path: Path) -> None:
    made = {access_token(tmp_path / str(n), {}).value for n in range(5)}
    assert len(made) == 5


def test_nobody_else_may_read_it(home: Path) -> None:
    before = os.umask(0)
    try:
        file = access_token(home, {}).file
    finally:
        os.umask(before)
    assert file is not None
    if posix:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_first_starts_at_once_agree(tmp_path: Path) -> None:
    for round_ in range(10):
        home, together = tmp_path / str(round_), Barrier(4)

        def start(home: Path = home, together: Barrier = together) -> AccessToken:
            together.wait()
            return access_token(home, {})

        with ThreadPoolExecutor(4) as starts:
            tokens = [each.result() for each in [starts.submit(start) for _ in range(4)]]
        assert len({token.value for token in tokens}) == 1
        assert sum(token.new for token in tokens) == 1
        assert len(list(token_file(home).parent.iterdir())) == 1


def test_the_environment_goes_before_the_file(home: Path) -> None:
    token = access_token(home, {ENVIRONMENT: CANARY})
    assert (token.value, token.file, token.new) == (CANARY, None, False)
    assert known_token(home, {ENVIRONMENT: CANARY}) == CANARY
    assert not home.exists()
    kept = access_token(home, {}).value
    assert access_token(home, {ENVIRONMENT: CANARY}).value == CANARY
    assert access_token(home, {ENVIRONMENT: ""}).value == kept


def test_the_process_environment_is_the_one_that_counts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, CANARY)
    assert access_token(home).value == known_token(home) == CANARY


def test_a_client_makes_none(home: Path) -> None:
    assert known_token(home, {}) is None
    assert not home.exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602, 0o666])
def test_one_that_others_may_read_is_refused(home: Path, mode: int) -> None:
    file = write(home, CANARY, mode)
    if not posix:  # Windows has no such modes
        assert known_token(home, {}) == CANARY
        return
    for read in (access_token, known_token):
        with pytest.raises(SettingsError, match="Others may read") as refused:
            read(home, {})
        assert "chmod 600" in (refused.value.hint or "")
        assert CANARY not in str(refused.value)
    assert file.read_text() == CANARY


@pytest.mark.parametrize(
    "text",
    ["", "short", " ", "x" * 15, "with a space in it, yes", "é" * 20, "a\nb" * 10, b"\xff" * 20],
)
def test_what_can_be_no_token_is_refused(home: Path, text: str | bytes) -> None:
    write(home, text)
    for read in (access_token, known_token):
        with pytest.raises(SettingsError) as refused:
            read(home, {})
        assert refused.value.hint


@pytest.mark.parametrize("text", ["short", "with a space in it, yes", "é" * 20, "a\nb" * 10])
def test_nor_from_the_environment(home: Path, text: str) -> None:
    for read in (access_token, known_token):
        with pytest.raises(SettingsError, match=ENVIRONMENT) as refused:
            read(home, {ENVIRONMENT: text})
        assert text not in str(refused.value)


def test_a_line_break_behind_it_is_none_of_it(home: Path) -> None:
    write(home, f"{CANARY}\n")
    assert access_token(home, {}).value == CANARY


def test_what_is_no_file_is_told(home: Path) -> None:
    token_file(home).mkdir(parents=True)
    for read in (access_token, known_token):
        with pytest.raises(EdgeVLMError) as told:
            read(home, {})
        assert told.value.hint


def test_a_home_that_is_a_file_is_told(home: Path) -> None:
    home.write_text("no folder")
    for read in (access_token, known_token):
        with pytest.raises(EdgeVLMError) as told:
            read(home, {})
        assert told.value.hint


def test_a_start_that_breaks_off_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(access.os, "fsync", broken)
    with pytest.raises(EdgeVLMError, match="full"):
        access_token(home, {})
    assert list(token_file(home).parent.iterdir()) == []
    monkeypatch.undo()
    assert access_token(home, {}).new


def test_it_is_not_in_what_is_printed_of_it(home: Path) -> None:
    token = access_token(home, {})
    assert token.value not in f"{token!r} {token} {[token]}"


@pytest.mark.parametrize(
    "given", ["", CANARY[:-1], CANARY + "x", CANARY.upper(), f" {CANARY}", "é", "\ud800", "\0"]
)
def test_only_the_token_itself_matches(given: str) -> None:
    token = AccessToken(CANARY, None)
    assert token.matches(CANARY)
    assert not token.matches(given)


def test_two_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgevlm.remote.access import access_token;"
        "sys.stdin.readline(); print(access_token(Path(sys.argv[1]), {}).value)"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "home")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    said = [start.communicate(timeout=60)[0].strip() for start in starts]
    assert said[0] == said[1] != ""
