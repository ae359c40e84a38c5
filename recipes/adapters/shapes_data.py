"""Write what the pack `shapes` learns from: easy-VQA's train split as conversations.

    python recipes/adapters/shapes_data.py      # build/adapters/shapes/: pictures, talks.jsonl

The questions and what is true are easy-VQA's (version 1.0 on PyPI, MIT); the answers are
written here. A yes or no comes last, behind what is there and what is not ("There is a red
circle and no triangle, so yes."): a small decoder compares what it has said much better than
what it has not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import beside_tiny  # noqa: F401
from packages import checked
from tasks import EASY_VQA
from weights import CACHE, REPOSITORY, download

Split = Literal["train", "test"]
Kind = Literal["shape", "colour", "there", "not there", "no such, and there", "no such"]

FOLDER = REPOSITORY / "build" / "adapters" / "shapes"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SEED = 5
# Of each picture there are up to three conversations of one question and one of up to this many.
PICTURES, TURNS = 450, 4


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as easy-VQA has it, and its answer."""

    question: str
    answer: str

    @property
    def kind(self) -> Kind:
        """What is asked; a negated one ("is there not a circle?") is `no such`."""
        if self.answer in SHAPES:
            return "shape"
        if self.answer in COLOURS:
            return "colour"
        if self._negated:
            return "no such" if self.answer == "yes" else "no such, and there"
        return "there" if self.answer == "yes" else "not there"

    @property
    def is_there(self) -> bool:
        """Whether the picture shows what is asked about; "what color is the circle?" says so."""
        return self.kind in ("shape", "colour", "there", "no such, and there")

    @property
    def words(self) -> frozenset[str]:
        """The colours and shapes in question and answer."""
        spoken = re.findall("[a-z]+", f"{self.question} {self.answer}")
        return frozenset(spoken) & {*COLOURS, *SHAPES}

    @property
    def said(self) -> str:
        """The question as a person would write it."""
        return self.question[0].upper() + self.question[1:]

    @property
    def _negated(self) -> bool:
        return bool(re.search(r"\b(?:not|no)\b", self.question))


@dataclass(frozen=True, slots=True)
class Shown:
    """What a picture has on its plain ground, in easy-VQA's words."""

    colour: str
    shape: str


def fetch() -> Path:
    """easy-VQA's wheel. Raises SystemExit where it is another file."""
    wheel = next(CACHE.glob("easy_vqa-1.0-*.whl"), None) or download("easy-vqa", "1.0", CACHE)
    return checked(wheel, EASY_VQA)


def read_questions(archive: zipfile.ZipFile, split: Split) -> dict[int, list[Asked]]:
    """The questions of each picture by its number, in the file's order."""
    questions: dict[int, list[Asked]] = defaultdict(list)
    for question, answer, image in json.loads(archive.read(f"{_folder(split)}questions.json")):
        questions[image].append(Asked(question, answer))
    return dict(questions)


def read_picture(archive: zipfile.ZipFile, split: Split, image: int) -> bytes:
    """A picture's PNG of 64 x 64."""
    return archive.read(f"{_folder(split)}images/{image}.png")


def _folder(split: Split) -> str:
    return f"easy_vqa/data/{split}/"


def shown(questions: Sequence[Asked]) -> Shown | None:
    """What the answers tell of the picture; None where they leave its colour or shape open."""
    told = {word for asked in questions if asked.is_there for word in asked.words}
    colours, shapes = told & {*COLOURS}, told & {*SHAPES}
    return Shown(*colours, *shapes) if colours and shapes else None


def answer(asked: Asked, there: Shown) -> str:
    """What the adapter is to say; "gray" is "grey" here, as it is in edgevlm-tiny's words."""
    if asked.kind == "shape":
        return f"It is a {there.shape}."
    if asked.kind == "colour":
        return f"It is {_spelled(there.colour)}."
    seen = f"There is a {_spelled(there.colour)} {there.shape}"
    if not asked.is_there:
        (missing,) = asked.words
        seen += f" and no {missing if missing in SHAPES else f'{_spelled(missing)} shape'}"
    return f"{seen}, so {asked.answer}."


def _spelled(colour: str) -> str:
    return "grey" if colour == "gray" else colour


def conversations(
    questions: Sequence[Asked], there: Shown, rng: random.Random
) -> Iterator[list[Asked]]:
    """About one picture: a question each about what is there, what isn't, and of what colour or
    shape it is, as far as easy-VQA has them, and a few in one conversation."""
    mixed = rng.sample(questions, len(questions))
    groups = [
        [asked for asked in mixed if asked.kind in ("shape", "colour")],
        [asked for asked in mixed if asked.kind in ("there", "no such, and there")],
        [asked for asked in mixed if not asked.is_there],
    ]
    yield from ([group[0]] for group in groups if group)
    yield rng.sample(questions, min(TURNS, len(questions)))


def line(asked: Sequence[Asked], there: Shown, picture: str) -> str:
    """One conversation as `edgevlm adapter train` reads it."""
    messages = [
        {"role": role, "content": content}
        for one in asked
        for role, content in (("user", one.said), ("assistant", answer(one, there)))
    ]
    return json.dumps({"messages": messages, "images": [picture]})


def write(wheel: Path, folder: Path, *, pictures: int = PICTURES, seed: int = SEED) -> int:
    """Write pictures of the train split and their conversations; return how many these are."""
    rng = random.Random(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with zipfile.ZipFile(wheel) as archive:
        questions = read_questions(archive, "train")
        known = {i: there for i, asked in questions.items() if (there := shown(asked))}
        for image in rng.sample(sorted(known), min(pictures, len(known))):
            name = f"pictures/{image}.png"
            (folder / name).write_bytes(read_picture(archive, "train", image))
            talks = conversations(questions[image], known[image], rng)
            lines += [line(talk, known[image], name) for talk in talks]
    rng.shuffle(lines)
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    count = write(fetch(), options.out, pictures=options.pictures)
    print(f"{count} conversations about {options.pictures} pictures: {options.out}/talks.jsonl")


if __name__ == "__main__":
    main()
