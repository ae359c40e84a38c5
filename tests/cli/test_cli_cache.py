from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from answer_factory import asked, picture, reply, talk

from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person has it; other tests keep no answers."""
    monkeypatch.delenv("EDGEVLM_CACHE")


@pytest.fixture
def kept(home: Path) -> None:
    with closing(AnswerCache(Settings(home))) as cache:
        for n in range(3):
            assert cache.put(asked(talk(f"Question {n}?", picture())), reply())
        assert cache.get(asked(talk("Question 1?", picture()))) is not None


def test_an_empty_cache_is_shown_and_not_made(edgevlm: Run, home: Path) -> None:
    code, out, err = edgevlm("cache", "stats")
    assert (code, err) == (0, "")
    assert "0 answers" in out
    assert edgevlm("cache", "clear")[1] == "0 answers forgotten, 0 bytes freed.\n"
    assert not home.exists()


@pytest.mark.usefixtures("kept")
def test_stats_and_clear_tell_what_there_is(edgevlm: Run, home: Path) -> None:
    code, out, _ = edgevlm("cache", "stats", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["folder"] == str(home / "cache" / "answers")
    assert (found["mode"], found["entries"], found["hits"]) == ("on", 3, 1)
    assert 0 < found["bytes"] < found["limit_bytes"] == 64 * 2**20
    assert "3 answers" in edgevlm("cache", "stats")[1]
    removed = json.loads(edgevlm("cache", "clear", "--json")[1])
    assert removed["removed"] == 3
    assert removed["freed"] >= 0
    assert json.loads(edgevlm("cache", "stats", "--json")[1])["entries"] == 0


@pytest.mark.usefixtures("kept")
def test_one_that_is_off_can_be_cleared(edgevlm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", "0")
    assert "off" in edgevlm("cache", "stats")[1]
    assert edgevlm("cache", "clear")[1].startswith("3 answers")


@pytest.mark.usefixtures("kept")
def test_a_damaged_file_is_told_of(edgevlm: Run, home: Path) -> None:
    file = home / "cache" / "answers" / "answers-1.sqlite3"
    file.write_bytes(b"damaged" * 1000)
    code, out, _ = edgevlm("cache", "stats")
    assert code == 0
    assert "0 answers" in out
    assert "set aside" in out
    assert edgevlm("cache", "clear")[0] == 0
    assert not file.exists()


@pytest.mark.usefixtures("kept")
def test_one_that_another_program_holds_is_told(edgevlm: Run, home: Path) -> None:
    file = home / "cache" / "answers" / "answers-1.sqlite3"
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        code, out, err = edgevlm("cache", "clear")
    assert (code, out) == (4, "")
    assert "locked" in err
    assert "hint:" in err
