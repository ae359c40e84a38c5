"""The pack `shapes`: what it learns is true of train pictures alone, and rightly judged."""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from check_shapes import ALONE, WITH, Answer, draw, report, verdict
from PIL import Image
from shapes_data import COLOURS, SHAPES, Asked, Shown, Split, answer, conversations, shown, write

from edgevlm.adapters.training.data import read_examples
from edgevlm.adapters.training.recipe import make_recipe

ROOT = Path(__file__).parents[2]
THERE = Shown("gray", "circle")
ASKED = [
    ("what shape does the image contain?", "circle"),
    ("what is the gray shape?", "circle"),
    ("what color is the circle?", "gray"),
    ("is there a circle in the image?", "yes"),
    ("does the image contain a teal shape?", "no"),
    ("is there not a triangle?", "yes"),
    ("is no gray shape present?", "no"),
]


def questions(there: Shown) -> list[Asked]:
    """Questions in easy-VQA's words about any one shape."""
    shape = next(s for s in SHAPES if s != there.shape)
    colour = next(c for c in COLOURS if c != there.colour)
    return [
        Asked("what shape is present?", there.shape),
        Asked(f"what color is the {there.shape}?", there.colour),
        Asked(f"is a {there.shape} present?", "yes"),
        Asked(f"is no {there.colour} shape present?", "no"),
        Asked(f"is there not a {shape}?", "yes"),
        Asked(f"is there a {colour} shape?", "no"),
    ]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small easy-VQA: 12 pictures to train with and 4 to test with, each of a colour of its
    own."""
    path, rng = tmp_path / "easy_vqa.whl", random.Random(1)
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", 12), ("test", 4)):
            rows = []
            for image in range(count):
                there = Shown(rng.choice(COLOURS), rng.choice(SHAPES))
                rows += [[asked.question, asked.answer, image] for asked in questions(there)]
                with archive.open(f"easy_vqa/data/{split}/images/{image}.png", "w") as file:
                    Image.new("RGB", (64, 64), colour_of(split, image)).save(file, "PNG")
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(rows))
    return path


def colour_of(split: Split | str, image: int) -> tuple[int, int, int]:
    return (image, 0 if split == "train" else 255, 0)


@pytest.mark.parametrize(("question", "truth"), ASKED)
def test_every_answer_is_right_and_its_opposite_wrong(question: str, truth: str) -> None:
    asked = Asked(question, truth)
    said = answer(asked, THERE)
    assert verdict(asked, said) == "right"
    other = {"yes": "no", "no": "yes", "circle": "triangle", "gray": "blue"}[truth]
    assert verdict(Asked(question, other), said) == "wrong"


def test_answers_say_what_is_there_before_they_conclude() -> None:
    assert [answer(Asked(*asked), THERE) for asked in ASKED[2:]] == [
        "It is grey.",
        "There is a grey circle, so yes.",
        "There is a grey circle and no teal shape, so no.",
        "There is a grey circle and no triangle, so yes.",
        "There is a grey circle, so no.",
    ]


def test_what_a_picture_shows_is_told_by_its_answers_or_left_open() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            there = Shown(colour, shape)
            assert shown(questions(there)) == there
    assert shown([Asked("is there a circle?", "yes"), Asked("is there a red shape?", "no")]) is None


def test_a_picture_is_asked_about_in_single_questions_and_in_a_conversation() -> None:
    known = questions(THERE)
    *single, talk = conversations(known, THERE, random.Random(0))
    assert [len(asked) for asked in single] == [1, 1, 1]
    assert {asked.is_there for (asked,) in single} == {True, False}
    assert len(talk) == 4
    assert {*talk} <= {*known}


def test_only_train_pictures_are_written_and_the_same_ones_again(
    wheel: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert write(wheel, first, pictures=8) == write(wheel, second, pictures=8)
    talks = (first / "talks.jsonl").read_text()
    assert talks == (second / "talks.jsonl").read_text()

    written = {int(path.stem): path for path in (first / "pictures").iterdir()}
    assert len(written) == 8
    for image, path in written.items():
        pixels = np.asarray(Image.open(path))
        assert tuple(pixels[0, 0]) == colour_of("train", image)


def test_the_training_reads_what_is_written_and_all_of_it_is_right(
    wheel: Path, tmp_path: Path
) -> None:
    count = write(wheel, tmp_path, pictures=12)
    with zipfile.ZipFile(wheel) as archive:
        rows = json.loads(archive.read("easy_vqa/data/train/questions.json"))
    truth = {(Asked(q, a).said, image): Asked(q, a) for q, a, image in rows}
    examples = read_examples(tmp_path / "talks.jsonl")
    assert len(examples) == count
    for example in examples:
        (picture,) = example.said[0].images
        for asked, said in zip(example.said[::2], example.said[1::2], strict=True):
            assert verdict(truth[asked.text, int(picture.stem)], said.text) == "right"


def test_test_pictures_are_drawn_with_all_their_questions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        few, again, every = draw(archive, 7), draw(archive, 7), draw(archive, 100)
    assert few == again
    assert len(few) == 2
    assert {len(asked) for asked in every.values()} == {6}
    assert sorted(every) == [0, 1, 2, 3]


def test_the_report_has_base_and_pack_on_every_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked("is there a circle?", "yes")
    wrong = Answer("onnx", ALONE, 0, asked.question, "yes", asked.kind, "No.", "wrong")
    right = replace(wrong, by=WITH, text="Yes.", verdict="right")
    others = [replace(answer, runtime="onnx+mlx") for answer in (wrong, right)]
    report([wrong, right, *others])
    printed = capsys.readouterr().out
    assert "| onnx+mlx | 1 | 0.0% (0.0% to 0.0%) | 100.0% (100.0% to 100.0%) |" in printed
    assert "| is it there? It is | 1 | 0.0%" in printed
    assert "word for word in 100.0%" in printed
    report([])


def test_the_recipe_can_be_read() -> None:
    recipe = make_recipe({}, ROOT / "adapters" / "shapes" / "train.toml")
    assert recipe.out.resolve() == ROOT / "adapters" / "shapes"
    assert recipe.data.resolve() == ROOT / "build" / "adapters" / "shapes" / "talks.jsonl"
