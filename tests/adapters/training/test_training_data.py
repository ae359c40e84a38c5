"""What may be learned from, told before anything begins, and what is kept apart of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_parts import TAUGHT, pixels, write_lines

from edgevlm import load_settings
from edgevlm.adapters.training.data import read_examples
from edgevlm.adapters.training.job import train
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.adapters.training.samples import Rows, Sample, split
from edgevlm.errors import UnreadableMedia, UsageError


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "is not JSON"),
        ("[]", "is no object"),
        ("\xff", "is not JSON"),
        ({"image": "no.png", "answer": "a"}, "shows 'no.png', and there is no such file"),
        ({"image": "https://x.org/a.png", "answer": "a"}, "and there is no such file"),
        ({"image": 3, "answer": "a"}, "has images that are no list of paths"),
        ({"answer": "a"}, "asks nothing"),
        ({"question": "q"}, "has no text as 'answer'"),
        ({"question": "q", "answer": " "}, "has no text as 'answer'"),
        ({"question": "q", "answer": "a", "label": 1}, "has the unknown 'label'"),
        ({"messages": {}}, "has no list of messages"),
        ({"messages": []}, "must take turns"),
        ({"messages": ["hi"]}, "has a message that is no object"),
        ({"messages": [{"role": "user", "content": "q"}]}, "must take turns"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "a message of the role 'tool'"),
        ({"messages": [{"role": "assistant", "content": "q"}]}, "must take turns"),
        ({"messages": [{"role": "user", "content": ["q"]}]}, "has no text as 'content'"),
        (
            {"messages": [{"role": "assistant", "content": "a", "images": ["one.png"]}]},
            "has images in a message of the assistant",
        ),
    ],
)
def test_a_bad_line_is_named_before_anything_begins(
    recipe: Recipe, data: Path, line: Any, wrong: str
) -> None:
    path = data.parent / "bad.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(json.dumps(TAUGHT[0]).encode() + b"\n\n" + text.encode("latin-1") + b"\n")
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 3, ") as refused:
        train(replace(recipe, data=path), load_settings())
    assert wrong in refused.value.message


def test_a_picture_that_is_none_is_named_with_its_line(recipe: Recipe, data: Path) -> None:
    (data.parent / "text.png").write_text("no picture")
    lines = [TAUGHT[0], {"image": "text.png", "answer": "a"}]
    bad = write_lines(data.parent / "unseen.jsonl", lines)
    with pytest.raises(UnreadableMedia, match=r"unseen\.jsonl, line 2: "):
        train(replace(recipe, data=bad), load_settings())


def test_pictures_belong_to_the_first_question_unless_a_question_has_its_own(
    data: Path,
) -> None:
    turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages[2]["images"] = ["two.png"]
    path = write_lines(
        data.parent / "several.jsonl", [{"messages": messages, "images": ["one.png"]}]
    )
    (example,) = read_examples(path, system="Be short.")
    assert [said.role for said in example.said][:2] == ["system", "user"]
    shown = [[image.name for image in said.images] for said in example.said]
    assert shown == [[], ["one.png"], [], ["two.png"], []]


def test_a_folder_of_captions_is_asked_the_usual_question(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels(1)).save(tmp_path / "in" / "a.png")
    with pytest.raises(UsageError, match=r"a\.png has no caption a\.txt beside it"):
        read_examples(tmp_path)
    (tmp_path / "in" / "a.txt").write_text(" A cat.\n")
    (example,) = read_examples(tmp_path)
    assert [said.text for said in example.said] == ["Describe this image.", "A cat."]
    assert example.said[0].images == (tmp_path / "in" / "a.png",)


def test_no_picture_is_on_both_sides_of_the_split() -> None:
    def sample(*pictures: int) -> list[Sample]:
        rows = tuple(Rows(0, str(picture), 0, 1) for picture in pictures)
        return [Sample(np.array([1], np.int32), np.array([True]), rows)]

    # Pictures 3 i to 3 i + 2 are tied by the conversation that shows two of them, twice over.
    samples = [sample(3 * i + j, 3 * i + (j + 1) % 3) for i in range(20) for j in range(3)]
    samples += [sample() for _ in range(40)]
    learn, judge = split(samples, 0.2, seed=1)
    assert (len(learn), len(judge)) == (80, 20)
    sides = [{key for s in side for key in s.pictures} for side in (learn, judge)]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert [s.rows for s in split(samples, 0.2, seed=2)[1]] != [s.rows for s in judge]
    assert split(samples[:1], 0.5, seed=0)[1] == []
