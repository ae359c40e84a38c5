"""What is kept, for how long, and what comes back."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_factory import QUESTION, asked, picture, pixels, reply, talk
from dying import python

from edgevlm import Sampling
from edgevlm.cache import AnswerCache, Picture, answers
from edgevlm.cache.record import read, written
from edgevlm.errors import DeviceError
from edgevlm.messages import Reply, Route, Timings, TopToken

Open = Callable[..., AnswerCache]


def number(n: int) -> Any:
    return asked(talk(f"Question {n}?", picture()))


def test_an_answer_comes_back_as_it_was(cache: AnswerCache) -> None:
    given = reply(unsure=True, structured=True, parsed={"a": 1})
    assert cache.get(asked()) is None
    assert cache.put(asked(), given)
    found = cache.get(asked())
    assert found is not None
    assert found.route.decision == "cache"
    assert "asked before" in found.route.reason
    assert found.route.sent.image_bytes == 0
    fresh = {"route": found.route, "timings": Timings(), "parsed": None}
    assert found == replace(given, **fresh)


def test_odd_numbers_and_texts_come_back(cache: AnswerCache) -> None:
    token = reply().tokens[0]
    top = (TopToken(np.int64(3), "\ud800", np.float32(-1.5)), TopToken(4, "", -np.inf))  # type: ignore[arg-type]
    odd = replace(token, logprob=-np.inf, text="\x00\u2028\U0001f34e", top=top)
    given = reply("", tokens=(odd,), confidence=None, finish_reason="length")
    assert cache.put(asked(), given)
    found = cache.get(asked())
    assert found is not None
    assert found.tokens == given.tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "cancelled"},
        {"route": Route("cache", "asked before")},
        {"structured": True, "parsed": None},
    ],
)
def test_what_is_no_answer_of_the_model_is_not_kept(
    cache: AnswerCache, changes: dict[str, Any]
) -> None:
    assert not cache.put(asked(), reply(**changes))
    assert cache.get(asked()) is None


def test_what_may_be_another_next_time_is_not_kept(cache: AnswerCache) -> None:
    drawn = asked(sampling=Sampling(temperature=1.0))
    assert not cache.put(drawn, reply())
    seeded = asked(sampling=Sampling(temperature=1.0, seed=1))
    assert cache.put(seeded, reply())
    assert cache.get(seeded) is not None


def test_off_keeps_and_tells_nothing(open_cache: Open, home: Path) -> None:
    off = open_cache(cache="off")
    assert not off.put(asked(), reply())
    assert not home.exists()
    on = open_cache()
    assert on.put(asked(), reply())
    assert off.get(asked()) is None


def test_only_the_owner_may_read_it(cache: AnswerCache) -> None:
    cache.put(asked(), reply())
    files = list(cache.database.folder.iterdir())
    assert len(files) >= 1
    if os.name != "nt":
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_the_least_used_go_first(open_cache: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_ENTRIES", 3)
    cache = open_cache()
    for n in range(3):
        cache.put(number(n), reply(f"{n}"))
    assert cache.get(number(0)) is not None
    cache.put(number(3), reply("3"))
    assert [n for n in range(4) if cache.get(number(n)) is not None] == [0, 2, 3]


def test_bytes_are_bounded(open_cache: Open) -> None:
    cache = open_cache(cache_bytes=20_000)
    for n in range(100):
        assert cache.put(number(n), reply("word " * 40))
        assert cache.stats().bytes <= 20_000
    kept = cache.stats().entries
    assert 2 < kept < 20
    assert [n for n in range(100) if cache.get(number(n))] == list(range(100 - kept, 100))
    assert not cache.put(number(100), reply("word " * 2000))
    assert cache.get(number(99)) is not None


def test_the_file_stays_as_small_as_its_answers(open_cache: Open) -> None:
    cache = open_cache(cache_bytes=50_000)
    for n in range(400):
        cache.put(number(n), reply("word " * 40))
    cache.close()
    assert cache.stats().file_bytes < 400_000


def test_an_answer_that_is_given_again_takes_the_place_of_the_old(cache: AnswerCache) -> None:
    cache.put(asked(), reply("one"))
    cache.put(asked(), reply("two"))
    found = cache.get(asked())
    assert found is not None
    assert found.text == "two"
    assert cache.stats().entries == 1


def test_stats_count(cache: AnswerCache) -> None:
    assert cache.stats() == answers.CacheStats(0, 0, 0, 0, 0)
    assert not cache.database.folder.exists()
    cache.put(asked(), reply())
    for _ in range(3):
        cache.get(asked())
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.set_aside) == (1, 3, 0)
    assert 0 < stats.bytes < stats.file_bytes


def test_clear_leaves_no_trace(cache: AnswerCache, open_cache: Open) -> None:
    assert cache.clear() == 0
    other = open_cache()
    for n in range(50):
        other.put(number(n), reply(f"a secret of {n}"))
    assert cache.clear() == 50
    assert other.get(number(1)) is None
    left = b"".join(path.read_bytes() for path in cache.database.folder.iterdir())
    assert b"a secret" not in left
    assert other.put(number(1), reply())


def test_a_home_that_is_a_file_means_no_cache(home: Path, cache: AnswerCache) -> None:
    home.write_text("")
    assert cache.get(asked()) is None
    assert not cache.put(asked(), reply())
    assert cache.stats().entries == 0


def test_a_folder_that_cannot_be_made_means_no_cache(home: Path, cache: AnswerCache) -> None:
    cache.database.folder.parent.mkdir(parents=True)
    cache.database.folder.write_text("")
    with pytest.raises(DeviceError) as caught:
        cache.database.run(lambda connection: None)
    assert caught.value.hint is not None
    assert cache.get(asked()) is None
    assert not cache.put(asked(), reply())


# In a process of its own, whose files may not grow beyond the limit.
FULL_DISK = """
import resource, signal, sys
from contextlib import closing
from pathlib import Path
from answer_factory import asked, picture, reply, talk
from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with closing(AnswerCache(Settings(Path(sys.argv[1])))) as cache:
    question = lambda n: asked(talk(f"Question {n}?", picture()))
    assert cache.put(question(0), reply("first"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    kept = [n for n in range(1, 200) if cache.put(question(n), reply("word " * 100))]
    assert 0 < len(kept) < 199, kept
    assert cache.get(question(0)).text == "first"
    assert all(cache.get(question(n)).text == "word " * 100 for n in kept)
    print(len(kept))
with closing(AnswerCache(Settings(Path(sys.argv[1]) / "other"))) as cache:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    assert not cache.put(question(0), reply("first"))
    assert cache.get(question(0)) is None
"""


def test_a_full_disk_means_no_cache(home: Path, open_cache: Open) -> None:
    kept = int(python(FULL_DISK, str(home)))
    assert open_cache().stats().entries == kept + 1


def near(array: np.ndarray[Any, Any], question: str = QUESTION) -> Any:
    return asked(talk(question, Picture.of(array, "auto", None, near=True)))


def test_near_pictures_get_the_answer_where_that_is_asked_for(open_cache: Open) -> None:
    array = np.full((96, 128, 3), 90, np.uint8) + pixels(1, 96, 128) % 3
    noisy = np.full((96, 128, 3), 90, np.uint8) + pixels(2, 96, 128) % 3
    cache = open_cache(cache="near")
    assert cache.put(near(array), reply())
    found = cache.get(near(noisy, "what is in this picture"))
    assert found is not None
    assert "can't be told from" in found.route.reason
    assert cache.get(near(noisy, "What is not in this picture?")) is None
    changed = noisy.copy()
    changed[40:44, 50:54] += 30
    assert cache.get(near(changed)) is None
    assert open_cache().get(near(noisy)) is None
    two = (Picture.of(noisy, "auto", None, near=True),) * 2
    assert cache.get(asked(talk(QUESTION, *two))) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"text": 1},
        {"tokens": [[1], ["a"], [True]]},
        {"tokens": [[1], ["a"], [float("nan")]]},
        {"tokens": [[-1], ["a"], [0.0]]},
        {"tokens": [[1, 2], ["a"], [0.0]]},
        {"n_top": [9] * 5},
        {"n_top": [0, 1, 2, 0, 2]},
        {"finish_reason": "done"},
        {"usage": {"prompt_tokens": 1}},
        {"confidence": 2},
        {"unsure": 1},
        {"adapter": [["a"]]},
        {"runtime": {"vision": None}},
        {"answered": "today"},
    ],
)
def test_a_record_is_checked(changes: dict[str, Any]) -> None:
    import json

    good = json.loads(written(reply()))
    assert isinstance(read(json.dumps(good).encode()), Reply)
    for broken in (good | changes, [], dict.fromkeys(good)):
        with pytest.raises(ValueError):
            read(json.dumps(broken).encode())
