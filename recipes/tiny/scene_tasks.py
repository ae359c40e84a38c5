"""The tasks on held-out scenes: presence, colour, count, relations, words, charts, honesty.

Two questions are asked about a scene where it has two to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache, partial

import judge
import numpy as np
from captions import Concept, load_concepts
from photographs import load_photographs
from scenes import Sample, Scenes
from seen import COLOURS, MAX_THINGS, Thing
from tasks import (
    ABSENT,
    PRESENCE,
    Item,
    about_absent,
    description,
    held_out_cutouts,
    seeded,
    true_names,
)

COLOUR = (
    "What colour is the {thing}?",
    "Which colour does the {thing} have?",
    "what color is the {thing}",
    "Tell me the colour of the {thing}.",
)
COUNT = (
    "How many {things} are there?",
    "How many {things} do you see?",
    "What is the number of {things} in this picture?",
    "Count the {things}.",
)
SIDES = (
    "Is the {a} to the {way} of the {b}?",
    "Is the {a} further {way} than the {b}?",
    "Is the {a} to the left or to the right of the {b}?",
    "Which one is further {way}, the {a} or the {b}?",
)
LEVELS = (
    "Is the {a} {way} the {b}?",
    "Is the {a} somewhere {way} the {b}?",
    "Is the {a} above or below the {b}?",
    "Which is {comparative}, the {a} or the {b}?",
)
READING = (
    "What does it say?",
    "Which word is written here?",
    "Read the text in the picture.",
    "What's the word?",
)
HIGHEST = (
    "What is the highest value?",
    "How high is the highest value in this chart?",
    "Which value is the largest one?",
)
# Shares of the side by which two centres must differ for one to be left of or above the other.
APART = 0.15
# Words that an answer has without having read them.
TEMPLATE_WORDS = frozenset(
    {"the", "word", "text", "says", "say", "picture", "image", "written", "here", "reads"}
)
SHAPE = "a shape"
# How often "things" are counted where no name has the wanted number.
ALL_THINGS = 0.3


@cache
def _scenes() -> Scenes:
    """Always of everything that is packed, or the same seed would draw other pictures."""
    return Scenes(held_out=True, cutouts=held_out_cutouts(), photos=load_photographs())


def draw_scene(rng: np.random.Generator, sort: str) -> Sample:
    return _scenes().draw(rng, sort)


def concept_of(thing: Thing) -> Concept:
    return _known()[thing.concept]


@cache
def _known() -> list[Concept]:
    return load_concepts()


def name_of(thing: Thing) -> str:
    return " ".join(judge.bare(concept_of(thing).name))


def _names(thing: Thing) -> tuple[str, ...]:
    return _names_of(concept_of(thing))


def _names_of(concept: Concept) -> tuple[str, ...]:
    return (concept.name, *concept.synonyms)


def names_there(sample: Sample) -> set[str]:
    return true_names([concept_of(thing).name for thing in sample.scene.things])


def named_alone(sample: Sample) -> list[Thing]:
    """The things that are the only ones of their name or kind, so that "the cat" is clear."""
    things = sample.scene.things
    times = Counter(name for thing in things for name in true_names([concept_of(thing).name]))
    return [thing for thing in things if times[name_of(thing)] == 1]


def pick_absent(rng: np.random.Generator, sample: Sample) -> str:
    """A concept that is surely not in the scene, neither by name nor by synonym or kind. Shapes
    are asked for only among shapes, since a clock may pass for a circle."""
    there = names_there(sample)
    only_shapes = all(concept_of(thing).kind == SHAPE for thing in sample.scene.things)
    while True:
        concept = _known()[rng.integers(len(_known()))]
        if (concept.kind == SHAPE) == only_shapes and not judge.same(_names_of(concept)) & there:
            return concept.name


def presence(count: int) -> Iterator[Item]:
    """As many questions about what is there as about what isn't, two a scene."""
    rng = seeded("scene presence")
    for i in range((count + 1) // 2):
        yield from presence_of(draw_scene(rng, "things"), f"presence/{i}", i, rng, part="scenes")


def presence_of(
    sample: Sample, picture: str, i: int, rng: np.random.Generator, *, part: str
) -> Iterator[Item]:
    """The two questions about one scene; `i` turns the phrasings."""
    things = sample.scene.things
    there = concept_of(things[rng.integers(len(things))]).name
    for expected, name in ((True, there), (False, pick_absent(rng, sample))):
        question = PRESENCE[(i + expected) % len(PRESENCE)].format(a=name)
        judged = partial(judge.yes_no, expected=expected)
        truth = "yes" if expected else "no"
        yield Item(picture, sample.pixels, question, truth, judged, part=part)


def colour(count: int) -> Iterator[Item]:
    """Of things that are the only ones of their name; about as often of each colour."""
    rng = seeded("colour")
    asked: Counter[int] = Counter()
    for i in range(count):
        sample = draw_scene(rng, "things")
        while not (things := coloured(sample)):
            sample = draw_scene(rng, "things")
        thing = min(things, key=lambda thing: asked[thing.surface])
        asked[thing.surface] += 1
        question = COLOUR[i % len(COLOUR)].format(thing=name_of(thing))
        truth = COLOURS[thing.surface]
        judged = partial(judge.colour, expected=truth)
        yield Item(f"colour/{i}", sample.pixels, question, truth, judged, part=truth)


def coloured(sample: Sample) -> list[Thing]:
    """What is the only thing of its name, has one colour, and isn't called after one."""
    return [
        thing
        for thing in named_alone(sample)
        if 0 <= thing.surface < len(COLOURS)
        and not set(judge.COLOUR_WORDS) & {w for n in _names(thing) for w in judge.bare(n)}
    ]


def counting(count: int) -> Iterator[Item]:
    """One to five in turn: of things of one name where there are as many, or of all."""
    rng = seeded("count")
    for i in range(count):
        wanted = 1 + i % MAX_THINGS
        sample, things = _with_number(rng, wanted)
        question = COUNT[i % len(COUNT)].format(things=things)
        judged = partial(judge.number, expected=wanted)
        yield Item(f"count/{i}", sample.pixels, question, str(wanted), judged, part=str(wanted))


def _with_number(rng: np.random.Generator, wanted: int) -> tuple[Sample, str]:
    """A scene, and the plural of what is there so many times."""
    while True:
        sample = draw_scene(rng, "things")
        things = sample.scene.things
        times = Counter(name_of(thing) for thing in things)
        # A name that is another one's kind would count that one, too.
        named = [
            name for name, n in times.items() if n == wanted and times_named(sample, name) == n
        ]
        if named:
            return sample, judge.plural(named[rng.integers(len(named))])
        if len(things) == wanted and rng.random() < ALL_THINGS:
            return sample, "things"


def times_named(sample: Sample, name: str) -> int:
    return sum(name in true_names([concept_of(thing).name]) for thing in sample.scene.things)


def relations(count: int) -> Iterator[Item]:
    """Left, right, above and below in turn; guessing gets half of them."""
    rng = seeded("relations")
    for i in range(count):
        way = ("left", "right", "above", "below")[i % 4]
        sample, a, b = _pair(rng, way)
        form = i // 4 % 4
        # Two forms ask yes or no, and every other one of these the wrong way round.
        if form < 2 and i // 16 % 2:
            a, b = b, a
        yield relation(
            f"relations/{i}", sample, a, b, way, form, holds=not (form < 2 and i // 16 % 2)
        )


def relation(
    picture: str, sample: Sample, a: Thing, b: Thing, way: str, form: int, *, holds: bool
) -> Item:
    phrasings = SIDES if way in ("left", "right") else LEVELS
    higher = {"above": "higher up", "below": "lower down"}.get(way, "")
    question = phrasings[form].format(a=name_of(a), b=name_of(b), way=way, comparative=higher)
    names = {"subject": _names(a), "other": _names(b)}
    if form < 2:
        judged, truth = partial(judge.yes_no, expected=holds), "yes" if holds else "no"
    elif form == 2:
        judged, truth = partial(judge.direction, expected=way, **names), way
    else:
        judged, truth = partial(judge.which, asked=way, **names), name_of(a)
    part = ("yes or no", "yes or no", "this or that way", "which one")[form]
    return Item(picture, sample.pixels, question, truth, judged, part=part)


def _pair(rng: np.random.Generator, way: str) -> tuple[Sample, Thing, Thing]:
    """A scene and two things in it of different names, the first clearly so of the second."""
    axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[way]
    while True:
        sample = draw_scene(rng, "things")
        single = named_alone(sample)
        pairs = [
            (a, b)
            for a in single
            for b in single
            if sign * (a.centre[axis] - b.centre[axis]) > APART
        ]
        if pairs:
            return (sample, *pairs[rng.integers(len(pairs))])


def words(count: int) -> Iterator[Item]:
    """Words of 3 to 8 letters in fonts that training has not seen."""
    rng = seeded("words")
    for i in range(count):
        while True:
            sample = draw_scene(rng, "text")
            word = sample.scene.word
            if word.isalpha() and 3 <= len(word) <= 8 and word not in TEMPLATE_WORDS:
                break
        judged = partial(judge.reading, word=word)
        yield Item(f"words/{i}", sample.pixels, READING[i % len(READING)], word, judged)


def charts(count: int) -> Iterator[Item]:
    rng = seeded("charts")
    for i in range(count):
        sample = draw_scene(rng, "chart")
        value = sample.scene.word
        judged = partial(judge.number, expected=float(value))
        question = HIGHEST[i % len(HIGHEST)]
        yield Item(f"charts/{i}", sample.pixels, question, value, judged, part=sample.scene.chart)


def absence(count: int) -> Iterator[Item]:
    """Questions that take for granted what isn't in the scene."""
    rng = seeded("scene absence")
    for i in range(count):
        sample = draw_scene(rng, "things")
        thing = " ".join(judge.bare(pick_absent(rng, sample)))
        yield about_absent(f"absence/{i}", sample.pixels, thing, ABSENT[i % len(ABSENT)])


def descriptions(count: int) -> Iterator[Item]:
    rng = seeded("scene descriptions")
    for i in range(count):
        sample = draw_scene(rng, "things")
        yield description(f"descriptions/{i}", sample.pixels, names_there(sample), i, part="scenes")
