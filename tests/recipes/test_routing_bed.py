"""The test bed of confidence: a fair mixture, and a record that goes on where it was stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scene_bed
from bed import TASKS, Task, kind_of, questions
from collect import PROBED, Record, probed_ids
from packed import pack, unpack
from scenes import Scenes
from tasks import Item

from edgevlm.messages import Token
from edgevlm.routing.answers import Answer, tabulate
from edgevlm.routing.calibration import Subject
from edgevlm.routing.features import BASELINES, NAMES, Asked

PIXELS = np.zeros((4, 4, 3), np.uint8)


def task_of(name: str, count: int, per_picture: int) -> Task:
    def draw(count: int) -> Iterator[Item]:
        for i in range(count):
            picture = f"{name} {i // per_picture}"
            yield Item(picture, PIXELS, f"question {i}", "", lambda _: "right")

    return Task(name, name, draw, count)


def test_the_first_questions_are_a_fair_sample_and_pictures_stay_together() -> None:
    tasks = (task_of("few", 30, 1), task_of("many", 120, 3))
    asked = list(questions(tasks))
    assert len({key for key, _, _ in asked}) == len(asked) == 150
    for n in (25, 50, 100):
        part = Counter(task.name for _, task, _ in asked[:n])
        assert part["few"] == pytest.approx(n / 5, abs=3)
    pictures = [item.picture for _, _, item in asked]
    changes = sum(a != b for a, b in pairwise(pictures)) + 1
    assert changes == len(set(pictures))
    assert [key for key, _, _ in questions(tasks)] == [key for key, _, _ in asked]


def test_every_question_of_the_bed_has_a_kind() -> None:
    assert {kind_of(task.name, "") for task in TASKS} >= {"naming", "presence", "easy-VQA", ""}
    assert kind_of("scenes", "not there") == "honesty"
    assert kind_of("scenes", "colour") == "colour"


def test_a_scene_asks_for_what_is_true_of_it() -> None:
    rng = np.random.default_rng(0)
    drawn = Scenes(held_out=True, cutouts=(), photos=())
    parts: Counter[str] = Counter()
    for i in range(24):
        sample = drawn.draw(rng, "things")
        for item in scene_bed.questions_about(sample, f"scene/{i}", i, rng):
            parts[item.part] += 1
            if item.part == "count" and "thing" in item.question:
                assert int(item.truth) == len(sample.scene.things)
            if item.truth in ("yes", "no"):
                assert item.judged(item.truth.capitalize()) == "right"
    assert parts["presence"] == 48
    assert parts["not there"] == parts["description"] == parts["count"] == 24
    assert parts["colour"] > 3
    assert parts["place"] > 1


def row(key: str, tokens: int) -> dict:
    return {"key": key, "tokens": [0] * tokens, "grey": [3, 5]}


def test_a_record_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    grey = np.full((3, 5), 7, np.uint8)
    with Record(tmp_path) as record:
        record.add(row("a", 2), np.full((2, PROBED), 1.0, np.float32), grey)
    with (tmp_path / "logits.f16").open("ab") as file:  # stopped before the line was written
        file.write(b"half an answer")
    with Record(tmp_path) as record:
        assert record.done == {"a"}
        record.add(row("b", 1), np.full((1, PROBED), 2.0, np.float32), grey + 1)
    logits = np.fromfile(tmp_path / "logits.f16", np.float16).reshape(3, PROBED)
    assert logits[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert np.fromfile(tmp_path / "grey.u8", np.uint8).tolist() == [7] * 15 + [8] * 15
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]


def test_the_logits_that_are_kept_are_spread_over_the_vocabulary() -> None:
    ids = probed_ids(49_152)
    assert (len(set(ids.tolist())), ids[0], ids[-1]) == (PROBED, 0, 49_151)


def test_a_packed_table_comes_back(tmp_path: Path) -> None:
    subject = Subject.of("a-model", 5, "q4")
    tokens = (Token(1, "yes", -0.5), Token(2, "", -0.1))
    answer = Answer(subject, tokens, Asked("Is it?"), True, "one", "presence")
    table = tabulate([answer, replace(answer, right=False, picture="two"), answer])
    pack(tmp_path / "answers.npz", subject, table)
    again_of, again = unpack(tmp_path / "answers.npz")
    assert again_of == subject
    assert again.features == pytest.approx(table.features, abs=1e-6)
    assert again.features.shape == (3, len(NAMES))
    assert again.right.tolist() == [True, False, True]
    assert again.pictures == ("one", "two", "one")
    assert set(again.baselines) == set(BASELINES)
    assert again.tasks == ("presence",) * 3
