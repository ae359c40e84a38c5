"""Files that are damaged, foreign or newer, processes that die, and many at once."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_factory import asked, picture, reply, talk
from dying import python

from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings

Open = Callable[..., AnswerCache]
TESTS = Path(__file__).parents[1]


def question(n: int) -> Any:
    return asked(talk(f"Question {n}?", picture()))


def answer(n: int) -> Any:
    return reply(f"answer {n} " + "word " * (n % 50))


def fill(home: Path, n: int = 20) -> Path:
    """A closed database of `n` answers: its file."""
    with closing(AnswerCache(Settings(home))) as cache:
        for i in range(n):
            assert cache.put(question(i), answer(i))
        (file,) = cache.database.files()
    return file


def is_right(found: Any, n: int) -> bool:
    return found is None or (found.text, found.tokens) == (answer(n).text, answer(n).tokens)


@pytest.mark.parametrize(
    "kind", ["letters", "zeros", "a page", "newer", "older", "foreign", "index"]
)
def test_a_strange_file_is_set_aside(home: Path, open_cache: Open, kind: str) -> None:
    file = fill(home)
    data = file.read_bytes()
    if kind == "foreign":
        file.unlink()
    if kind in ("newer", "older", "foreign", "index"):
        changes = {
            "newer": "PRAGMA user_version = 2",
            "older": "PRAGMA user_version = 0",
            "foreign": "CREATE TABLE letters (text TEXT)",
            "index": "DROP INDEX answers_by_use",
        }
        with sqlite3.connect(file) as connection:
            connection.execute(changes[kind])
        connection.close()
    else:
        broken = {"letters": b"no database" * 99, "zeros": bytes(8192), "a page": data[:4096]}
        file.write_bytes(broken[kind])
    before = file.read_bytes()
    cache = open_cache()
    assert cache.get(question(1)) is None
    assert cache.put(question(1), answer(1))
    assert is_right(cache.get(question(1)), 1)
    assert file.read_bytes() == before
    assert cache.stats().set_aside == 1
    cache.clear()
    assert not file.exists()
    assert cache.stats().set_aside == 0


def test_a_changed_answer_is_not_believed(home: Path, open_cache: Open) -> None:
    file = fill(home)
    data = file.read_bytes()
    assert data.count(b"answer 7 ") == 1
    file.write_bytes(data.replace(b"answer 7 ", b"answer 8 "))
    cache = open_cache()
    assert cache.get(question(7)) is None
    assert cache.put(question(7), answer(7))
    assert cache.stats().entries == 1


def test_an_answer_under_another_key_is_not_believed(home: Path, open_cache: Open) -> None:
    file = fill(home, 1)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE answers SET key = ?", (question(5).key,))
    connection.close()
    assert open_cache().get(question(5)) is None


def test_at_most_one_file_is_kept_aside(home: Path, open_cache: Open) -> None:
    file = fill(home)
    for n in range(1, 5):
        file.with_name(f"answers-{n}.sqlite3").write_bytes(b"damaged")
        cache = open_cache()
        assert cache.put(question(n), answer(n))
        cache.close()
        assert len(cache.database.files()) == 2


def test_a_folder_in_its_place_is_passed_by(home: Path, open_cache: Open) -> None:
    (home / "cache" / "answers" / "answers-3.sqlite3").mkdir(parents=True)
    cache = open_cache()
    assert cache.put(question(1), answer(1))
    assert is_right(cache.get(question(1)), 1)


@pytest.mark.parametrize("seed", range(4))
def test_no_byte_of_the_file_can_make_it_lie_or_fail(home: Path, tmp_path: Path, seed: int) -> None:
    """240 files with bytes flipped, cut, repeated or overwritten: each answer is right or none."""
    good = fill(home).read_bytes()
    rng = np.random.default_rng(seed)
    served = healed = 0
    for round_ in range(60):
        folder = tmp_path / f"fuzz-{round_}"
        file = folder / "cache" / "answers" / "answers-1.sqlite3"
        file.parent.mkdir(parents=True)
        file.write_bytes(damaged(good, rng))
        with closing(AnswerCache(Settings(folder))) as cache:
            for n in range(0, 20, 3):
                found = cache.get(question(n))
                assert is_right(found, n)
                served += found is not None
            assert cache.put(question(3), answer(3))
            found = cache.get(question(3))
            assert is_right(found, 3)
            healed += found is not None
            cache.stats()
            cache.clear()
            assert cache.get(question(3)) is None
        shutil.rmtree(folder)
    assert served > 60
    assert healed > 50


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(good)
    # Half of the blows fall on headers, where they mean most.
    places = [100, 4096, len(data)]
    kind = int(rng.integers(5))
    if kind == 0:
        del data[int(rng.integers(1, len(data))) :]
    elif kind == 1:
        start = int(rng.integers(len(data)))
        data[start : start + 512] = bytes(rng.integers(0, 256, 512, dtype=np.uint8))
    elif kind == 2:
        one, two = (4096 * int(rng.integers(len(data) // 4096)) for _ in range(2))
        data[one : one + 4096] = data[two : two + 4096]
    else:
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(places[int(rng.integers(3))]))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def test_a_damaged_log_costs_answers_and_nothing_else(home: Path, tmp_path: Path) -> None:
    """The write-ahead log of a process that was killed, with any of its bytes changed."""
    with closing(AnswerCache(Settings(home))) as cache:
        for n in range(20):
            assert cache.put(question(n), answer(n))
        folder = cache.database.folder
        files = {
            path.name: path.read_bytes() for path in folder.iterdir() if "-shm" not in path.name
        }
    log = next(name for name in files if name.endswith("-wal"))
    rng = np.random.default_rng(0)
    for round_ in range(50):
        copy = tmp_path / f"copy-{round_}" / "cache" / "answers"
        copy.mkdir(parents=True)
        for name, data in files.items():
            (copy / name).write_bytes(damaged(data, rng) if name == log else data)
        with closing(AnswerCache(Settings(copy.parents[1]))) as cache:
            assert all(is_right(cache.get(question(n)), n) for n in range(20))
            assert cache.put(question(3), answer(3))


def test_damage_that_comes_while_it_is_open_is_passed_by(home: Path, open_cache: Open) -> None:
    fill(home)
    one, two = open_cache(), open_cache()
    assert is_right(one.get(question(1)), 1)
    (file,) = one.database.files()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE answers SET value = x'00'")
    connection.close()
    assert one.get(question(1)) is None
    assert one.put(question(1), answer(1))
    assert is_right(two.get(question(1)), 1)


# One of eight processes on one file, each also with four threads.
HAMMER = """
import sys, threading
from pathlib import Path
from answer_factory import asked, picture, reply, talk
from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings

me, shown = int(sys.argv[2]), picture()
cache = AnswerCache(Settings(Path(sys.argv[1]), cache_bytes=200_000))
failed, served = [], []

def work(thread):
    for n in range(30):
        n = (7 * n + 3 * thread + me) % 60
        question = asked(talk(f"Question {n}?", shown))
        found = cache.get(question)
        if found is not None and found.text != f"answer {n} " + "word " * 40:
            failed.append(found)
        served.append(found is not None)
        if found is None or n % 9 == 0:
            cache.put(question, reply(f"answer {n} " + "word " * 40))

threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not failed
cache.close()
print(sum(served))
"""


def test_eight_processes_of_four_threads_share_it(home: Path, open_cache: Open) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda me=me: results.append(python(HAMMER, str(home), str(me))))
        for me in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert sum(map(int, results)) > 100
    cache = open_cache()
    assert cache.stats().set_aside == 0
    assert cache.stats().entries > 0
    check = cache.database.run(lambda c: c.execute("PRAGMA integrity_check").fetchall())
    assert check == [("ok",)]


WRITER = """
import sys
from contextlib import closing
from pathlib import Path
from answer_factory import asked, picture, reply, talk
from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings

shown, n = picture(), 0
with closing(AnswerCache(Settings(Path(sys.argv[1]), cache_bytes=400_000))) as cache:
    while True:
        question = asked(talk(f"Question {n % 100}?", shown))
        assert cache.put(question, reply(f"answer {n % 100} " + "word " * (n % 100 % 50)))
        n += 1
        print(n, flush=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_or_the_new(home: Path, open_cache: Open) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        program = [sys.executable, "-c", WRITER, str(home)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=TESTS) as writer:
            assert writer.stdout is not None
            for _ in range(int(rng.integers(1, 150))):
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        cache = open_cache()
        assert is_right(cache.get(question((last - 1) % 100)), (last - 1) % 100)
        found = [cache.get(question(n)) for n in range(100)]
        assert all(is_right(f, n) for n, f in enumerate(found))
        assert sum(f is not None for f in found) >= min(last, 100) - 1
        assert cache.stats().set_aside == 0
        cache.close()


FORK = """
import os, sys
from contextlib import closing
from pathlib import Path
from answer_factory import asked, reply
from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings

with closing(AnswerCache(Settings(Path(sys.argv[1])))) as cache:
    assert cache.put(asked(model="a"), reply("a"))
    child = os.fork()
    if child == 0:
        good = cache.get(asked(model="a")).text == "a" and cache.put(asked(model="b"), reply("b"))
        cache.close()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get(asked(model="b")).text == "b"
    assert cache.put(asked(model="c"), reply("c"))
"""


def test_a_child_has_a_connection_of_its_own(home: Path, open_cache: Open) -> None:
    python(FORK, str(home))
    assert open_cache().stats().entries == 3
