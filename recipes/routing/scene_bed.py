"""All that a composed scene has to ask: what is there and what isn't, a colour, a count, a place.

The questions and verdicts are those of recipes/tiny/scene_tasks.py, which asks one or two of each
scene; here a scene answers for up to seven, since reading it is most of the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import beside_tiny  # noqa: F401
import judge
import numpy as np
from scene_tasks import (
    APART,
    COLOUR,
    COUNT,
    coloured,
    draw_scene,
    name_of,
    named_alone,
    names_there,
    pick_absent,
    presence_of,
    relation,
    times_named,
)
from scenes import Sample
from seen import COLOURS
from tasks import ABSENT, Item, about_absent, description, seeded


def scenes(count: int) -> Iterator[Item]:
    """The questions of `count` scenes. An item's `part` is its kind."""
    rng = seeded("routing scenes")
    for i in range(count):
        sample = draw_scene(rng, "things")
        yield from questions_about(sample, f"scene/{i}", i, rng)


def questions_about(
    sample: Sample, picture: str, i: int, rng: np.random.Generator
) -> Iterator[Item]:
    """`i` turns the phrasings."""
    yield from presence_of(sample, picture, i, rng, part="presence")
    yield from _colour(sample, picture, i)
    yield _count(sample, picture, i, rng)
    yield from _place(sample, picture, i, rng)
    thing = " ".join(judge.bare(pick_absent(rng, sample)))
    yield about_absent(picture, sample.pixels, thing, ABSENT[i % len(ABSENT)])
    yield description(picture, sample.pixels, names_there(sample), i, part="description")


def _colour(sample: Sample, picture: str, i: int) -> Iterator[Item]:
    for thing in coloured(sample)[:1]:
        question = COLOUR[i % len(COLOUR)].format(thing=name_of(thing))
        truth = COLOURS[thing.surface]
        judged = partial(judge.colour, expected=truth)
        yield Item(picture, sample.pixels, question, truth, judged, part="colour")


def _count(sample: Sample, picture: str, i: int, rng: np.random.Generator) -> Item:
    """Of the name there is most of, where nothing else goes by it, or of all things."""
    names = Counter(name_of(thing) for thing in sample.scene.things)
    name, number = names.most_common(1)[0]
    if times_named(sample, name) != number or rng.random() < 0.3:
        name, number = "thing", len(sample.scene.things)
    question = COUNT[i % len(COUNT)].format(things=judge.plural(name))
    judged = partial(judge.number, expected=number)
    return Item(picture, sample.pixels, question, str(number), judged, part="count")


def _place(sample: Sample, picture: str, i: int, rng: np.random.Generator) -> Iterator[Item]:
    """Of two things of different names that are clearly apart, by a way and a form in turn; two
    forms of four ask yes or no, half of these the wrong way round."""
    axis, ways = ((0, ("left", "right")), (1, ("above", "below")))[i % 2]
    single = named_alone(sample)
    pairs = [(a, b) for a in single for b in single if b.centre[axis] - a.centre[axis] > APART]
    if not pairs:
        return
    first, second = pairs[rng.integers(len(pairs))]
    way = ways[i // 2 % 2]
    a, b = (first, second) if way == ways[0] else (second, first)
    form, holds = i // 4 % 4, i // 16 % 2 == 0
    if form < 2 and not holds:
        a, b = b, a
    item = relation(picture, sample, a, b, way, form, holds=holds or form >= 2)
    yield Item(picture, item.image, item.question, item.truth, item.judged, part="place")
