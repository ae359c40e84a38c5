"""Conversations as positions of the decoder: what a session would send, and what is to be said."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.adapters.training.data import Example
from edgevlm.adapters.training.pictures import Pictures
from edgevlm.engine.prompt import Prompt
from edgevlm.errors import PromptTooLong, TemplateError
from edgevlm.families.base import Family, Turn


@dataclass(frozen=True, slots=True)
class Rows:
    """Positions `at : at + count` are rows `start : start + count` of a picture."""

    at: int
    picture: str
    start: int
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """A sequence of n positions: `ids` int32 [n], 0 where a picture's rows are; `learned` bool
    [n] says which are an answer's, its last one the token that ends it."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    rows: tuple[Rows, ...]

    @property
    def pictures(self) -> frozenset[str]:
        return frozenset(rows.picture for rows in self.rows)


def make_samples(
    examples: Iterable[Example], family: Family, pictures: Pictures, longest: int
) -> list[list[Sample]]:
    """The samples of each example: one, unless its template shows later turns earlier ones
    otherwise than they were said.

    Raises MediaError, TemplateError, and PromptTooLong above `longest` positions.
    """
    return [_samples_of(example, family, pictures, longest) for example in examples]


def _samples_of(example: Example, family: Family, pictures: Pictures, longest: int) -> list[Sample]:
    turns = [
        Turn(
            said.role,
            (*(pictures.prepare(image, example.where) for image in said.images), said.text),
        )
        for said in example.said
    ]
    found: list[_Positions] = []
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked, answered = family.render(turns[:index]), family.render(turns[: index + 1])
        positions = _answer(asked, answered, family.stop_ids, example.where)
        if len(positions.keys) > longest:
            raise PromptTooLong(
                f"{example.where} has {len(positions.keys)} tokens, and the model takes {longest}.",
                hint="Shorten the conversation, or show fewer pictures in it.",
            )
        if found and positions.begins_with(found[-1]):
            earlier = found.pop().learned
            positions.learned[: len(earlier)] = earlier
        found.append(positions)
    return [positions.sample() for positions in found]


@dataclass(slots=True)
class _Positions:
    keys: list[Hashable]
    learned: list[bool]

    def begins_with(self, other: _Positions) -> bool:
        return self.keys[: len(other.keys)] == other.keys

    def sample(self) -> Sample:
        rows: list[Rows] = []
        for at, key in enumerate(self.keys):
            if not isinstance(key, tuple):
                continue
            picture, row = key
            last = rows[-1] if rows else Rows(-1, "", 0, 0)
            after_last = (last.picture, last.at + last.count, last.start + last.count)
            if (picture, at, row) == after_last:
                rows[-1] = Rows(last.at, picture, last.start, last.count + 1)
            else:
                rows.append(Rows(at, picture, row, 1))
        ids = [key if isinstance(key, int) else 0 for key in self.keys]
        return Sample(np.array(ids, np.int32), np.array(self.learned), tuple(rows))


def _answer(asked: Prompt, answered: Prompt, stop_ids: frozenset[int], where: str) -> _Positions:
    """The question's positions as a session sends them, and the answer's as the next question
    would show them, up to the token that ends it."""
    before, after = asked.keys(), answered.keys()
    end = next((i for i in range(len(before), len(after)) if after[i] in stop_ids), None)
    if end is None or after[: len(before)] != before:
        raise TemplateError(
            f"{where}: the model's chat template does not show the answer as it would be given.",
            hint="Train another model: this one's template can't be learned from.",
        )
    learned = [False] * len(before) + [True] * (end + 1 - len(before))
    return _Positions(after[: end + 1], learned)


def split(
    samples: Sequence[Sequence[Sample]], share: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Those to learn from and those to evaluate with, about `share` of the examples.

    An example goes to one side whole, and so do all examples of a picture.
    """
    groups = _by_picture(samples)
    random.Random(seed).shuffle(groups)  # noqa: S311
    wanted = min(round(share * len(samples)), len(samples) - 1)
    learn: list[Sample] = []
    judge: list[Sample] = []
    judged = 0
    for group in groups:
        # The last group is always there to learn from, however many examples it has.
        to_judge = judged + len(group) <= wanted
        judged += len(group) if to_judge else 0
        for index in group:
            (judge if to_judge else learn).extend(samples[index])
    return learn, judge


def _by_picture(samples: Sequence[Sequence[Sample]]) -> list[list[int]]:
    """Indices of examples that are tied by the pictures that they share."""
    tied_to = list(range(len(samples)))

    def root(index: int) -> int:
        while tied_to[index] != index:
            tied_to[index] = index = tied_to[tied_to[index]]
        return index

    first_with: dict[str, int] = {}
    for index, parts in enumerate(samples):
        for picture in {picture for part in parts for picture in part.pictures}:
            tied_to[root(index)] = root(first_with.setdefault(picture, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(samples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def digest_of(samples: Iterable[Sample]) -> str:
    """SHA-256, in hex, over what is learned and from what."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.ids.tobytes() + sample.learned.tobytes() + repr(sample.rows).encode())
    return digest.hexdigest()
