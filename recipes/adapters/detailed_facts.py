"""Which facts a description of a scene states, and which of them are right: fixed rules, no model.

Facts are the name of a thing, its colour, its size, its place, how many there are of it, how many
things there are in all, and how two things stand to each other. `judge_facts` gives every phrase
the thing of the scene that it fits best, no thing to two phrases, and holds the phrase to it. So
of "a red cat at the top" where there is a red dog the name is wrong, and colour and place are
right. What is said twice of one phrase counts once, what is said carefully ("probably") counts
like the rest, and what is denied doesn't count.

Neither right nor wrong, but reported: colours of what has no one colour, and what isn't
understood (names that no list has, sentences without a fact).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import beside_tiny  # noqa: F401
from captions import Concept, load_concepts
from detailed_reading import OPPOSITE, Phrase, Relation, read
from seen import PLACE_EDGES, SIZE_EDGES, SURFACES, Scene, Thing
from tasks import true_names

Sort = Literal["name", "colour", "size", "place", "number", "number in all", "relation"]
SORTS: tuple[Sort, ...] = get_args(Sort)
# How far a centre may lie beyond the edge of where it is said to be, in shares of the picture,
# and by which factor an area may.
SLACK, SIZE_SLACK = 0.04, 1.25

# A fact and whether it is right; None where neither can be said.
_Verdict = tuple["Fact", bool | None]


@dataclass(frozen=True, slots=True)
class Fact:
    sort: Sort
    said: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What an answer comes to. `undecided` is stated, but of what has no one truth; `unparsed`
    is what the rules don't understand."""

    right: tuple[Fact, ...]
    wrong: tuple[Fact, ...]
    undecided: tuple[Fact, ...]
    unparsed: tuple[str, ...]


def judge_facts(answer: str, scene: Scene) -> Facts:
    """Every fact of `answer` against a scene of things."""
    said = read(answer)
    things = [_True(thing) for thing in scene.things]
    single = [(one, phrase) for phrase in said.phrases for one in (phrase.members or [phrase])]
    chosen = _fitted([_both(one, phrase) for one, phrase in single], things)
    fitting = {id(one): thing for (one, _), thing in zip(single, chosen, strict=True)}
    verdicts: list[_Verdict] = []
    for phrase in said.phrases:
        meant = [fitting[id(one)] for one in (phrase.members or [phrase])]
        verdicts += _of_phrase(phrase, meant, things)
        for member in phrase.members:
            verdicts += _of_thing(member, [fitting[id(member)]])
    for subject, way, other in _once(said.relations):
        fact = Fact("relation", f"{_called(subject)} {way} {_called(other)}")
        verdicts.append((fact, _stands(fitting.get(id(subject)), fitting.get(id(other)), way)))
    for total in dict.fromkeys(said.totals):
        verdicts.append((Fact("number in all", str(total)), total == len(things)))
    right, wrong, undecided = (
        tuple(fact for fact, found in verdicts if found is verdict)
        for verdict in (True, False, None)
    )
    return Facts(right, wrong, undecided, tuple(said.unparsed))


def _once(relations: Sequence[Relation]) -> list[Relation]:
    """Without those that were said before, that way or the other way round."""
    kept: dict[frozenset[tuple[int, str]], Relation] = {}
    for subject, way, other in relations:
        ends = frozenset({(id(subject), way), (id(other), OPPOSITE[way])})
        kept.setdefault(ends, (subject, way, other))
    return list(kept.values())


def _both(member: Phrase, phrase: Phrase) -> Phrase:
    """What is said of one of several, and of all of them."""
    both = Phrase()
    both.takes(member)
    both.takes(phrase)
    return both


def _fitted(phrases: Sequence[Phrase], things: Sequence[_True]) -> list[_True | None]:
    """The thing that each phrase means: no thing twice, and as many facts right as can be."""

    @cache
    def best(at: int, left: int) -> tuple[float, tuple[int, ...]]:
        if at == len(phrases):
            return 0.0, ()
        score, chosen = best(at + 1, left)
        found = score, (-1, *chosen)
        for i, thing in enumerate(things):
            if left >> i & 1 and (fit := _fit(phrases[at], thing)):
                score, chosen = best(at + 1, left & ~(1 << i))
                # The first of equals.
                found = max(found, (fit + score, (i, *chosen)), key=lambda one: one[0])
        return found

    _, chosen = best(0, (1 << len(things)) - 1)
    return [things[i] if i >= 0 else None for i in chosen]


def _fit(phrase: Phrase, thing: _True) -> float:
    """How many facts are right; where that is equal, the name decides."""
    rights = [right for _, right in _of_thing(phrase, [thing])]
    return rights.count(True) + (1.1 if phrase.name in thing.names else 0)


class _True:
    """What is true of a thing."""

    def __init__(self, thing: Thing) -> None:
        self.names = true_names([_concepts()[thing.concept].name])
        self.surface = SURFACES[thing.surface] if thing.surface >= 0 else ""
        self.area, (self.x, self.y) = thing.area, thing.centre

    def is_large(self, size: str) -> bool:
        low, high = {
            "small": (0.0, SIZE_EDGES[0]), "medium": SIZE_EDGES, "large": (SIZE_EDGES[1], 1.0),
        }[size]  # fmt: skip
        return low / SIZE_SLACK <= self.area <= high * SIZE_SLACK

    def is_at(self, row: str, column: str) -> bool:
        return all(
            _within(where, bands.index(said))
            for said, where, bands in (
                (row, self.y, ("top", "middle", "bottom")),
                (column, self.x, ("left", "center", "right")),
            )
            if said
        )


def _within(where: float, band: int) -> bool:
    edges = (0.0, *PLACE_EDGES, 1.0)
    return edges[band] - SLACK <= where <= edges[band + 1] + SLACK


@cache
def _concepts() -> list[Concept]:
    return load_concepts()


def _of_phrase(
    phrase: Phrase, meant: Sequence[_True | None], things: Sequence[_True]
) -> list[_Verdict]:
    found = _of_thing(phrase, meant)
    if phrase.name:
        named = any(one is not None and phrase.name in one.names for one in meant)
        found.append((Fact("name", phrase.name), named))
    if phrase.number is not None and (phrase.name or phrase.colour):
        alike = [
            one
            for one in things
            if (not phrase.name or phrase.name in one.names)
            and (not phrase.colour or phrase.colour == one.surface)
        ]
        fact = Fact("number", f"{phrase.number} {_called(phrase)}")
        found.append((fact, len(alike) == phrase.number))
    return found


def _of_thing(phrase: Phrase, meant: Sequence[_True | None]) -> list[_Verdict]:
    """Colour, size and place of all that a phrase means."""
    there = [one for one in meant if one is not None]
    found: list[_Verdict] = []
    if phrase.colour:
        verdict = bool(there) and all(one.surface == phrase.colour for one in there)
        decided = not there or all(one.surface for one in there)
        found.append((Fact("colour", _called(phrase)), verdict if decided else None))
    if phrase.size:
        verdict = bool(there) and all(one.is_large(phrase.size) for one in there)
        found.append((Fact("size", f"{phrase.size} {phrase.name or 'thing'}"), verdict))
    if phrase.row or phrase.column:
        verdict = bool(there) and all(one.is_at(phrase.row, phrase.column) for one in there)
        where = " ".join(word for word in (phrase.row, phrase.column) if word)
        found.append((Fact("place", f"{_called(phrase)}: {where}"), verdict))
    return found


def _stands(one: _True | None, other: _True | None, way: str) -> bool:
    if one is None or other is None:
        return False
    return {
        "left": one.x < other.x, "right": one.x > other.x,
        "above": one.y < other.y, "below": one.y > other.y,
        "larger": one.area > other.area, "smaller": one.area < other.area,
    }[way]  # fmt: skip


def _called(phrase: Phrase) -> str:
    return " ".join(word for word in (phrase.colour, phrase.name or "thing") if word)
