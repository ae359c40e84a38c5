"""What edgevlm-tiny's projector says of the things in a picture, of its print and its sort.

`sight` decides, from what the heads measure, what is certain enough to be said; `write_spatial`
writes it as tokens, in the slots that seen.py lays out. projector_graph.py is both as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from projector import (
    CERTAINTIES,
    CLEAR,
    CONCEPT_PROBABLY_AT,
    LONE_PROBABLY_AT,
    PROBABLY,
    UNCLEAR,
    Reading,
    Table,
    Vocabulary,
    describe,
    fill,
    name_concept,
    said_rows,
)
from seen import (
    COLUMNS,
    NUMBERS,
    RANKS,
    ROWS,
    SECOND_NAME,
    SIZE_EDGES,
    SIZES,
    SORTS,
    SPATIAL_TOKENS,
    SURFACES,
    THING_NAME,
    WORD,
    Look,
    Slot,
    Spatial,
    place,
)
from tokenizers import Tokenizer

PHOTO, THINGS, TEXT, CHART, NOTHING = range(len(SORTS))
# From here on there is a thing, and from here on a surface is told: of 200 training scenes the
# right number of things was found in 82%; of things of one colour 94% get one, 9% a wrong one.
# In a photograph, whose things the detector hardly knows, both that there is one and what it is
# must be all but certain.
THING_AT = 0.25
SURFACE_AT = 0.20
THING_IN_PHOTO_AT = 0.80
NAME_IN_PHOTO_AT = 0.75
# Two common colours that the heads take for others, told by how far the logits of the likeliest
# surface lead. Teal (CSS's 008080) is called blue with green nearer and purple further off than
# they are of anything blue: it has none of the names, and none is told, of 46 in 46 shapes, and of
# none of 103 things in scenes that are called blue. Reddish brown (CSS's a52a2a) is called red,
# with brown near, and orange and pink not: of a lone thing it is told as brown, in 49 of 49 shapes
# and in 2 of 17 lone drawings that are called red. That is of easy-VQA's training pictures; of
# shapes drawn here in about these colours, small ones among them, 86 of 134 are then no blue any
# more and 120 instead of 54 of 215 brown, at the cost of 1 of 18 blue and 1 of 11 red ones.
TEAL_TO_GREEN, TEAL_FROM_PURPLE = 10.0, 9.0
BROWN_TO_RED, BROWN_FROM_OTHERS = 6.5, 5.0
RED, ORANGE, GREEN, BLUE, PURPLE, PINK, BROWN = (
    SURFACES.index(name) for name in ("red", "orange", "green", "blue", "purple", "pink", "brown")
)
# From here on a thing's runner-up is said.
SECOND_AT = 0.08
# What is no photograph and has a thing as sure as this, but no clear print, is one of things: so
# are 29 of 32 training scenes and drawings, and none of 200 texts, charts and empty pictures.
SURE_THING_AT = 0.50
# A classifier that isn't clear about a photograph gives way to a concept as likely as this.
CONCEPT_IN_PHOTO_AT = 0.60
SHAPE = "a shape"
# A large thing that shares this much of a smaller one is all there is: its parts were taken for
# things. That leaves 29 of 300 lone training drawings in parts, of 147, and joins no two things in
# 300 training scenes.
PART_FROM = 0.10
# A lone thing that covers this much of the picture is named by the whole alone: of 300 drawings
# on white the whole names 64%, glimpse and whole together 61%.
LARGE_FROM = SIZE_EDGES[-1]
# Cosine of the probabilities of two things from which on they are taken for the same sort of
# thing: with it, 82% of 496 groups of alike training things are counted rightly, without it 78%.
ALIKE_FROM = 0.20
WORD_CLEAR_AT = 0.70
WORD_PROBABLY_AT = 0.35
# What is read where no print was expected has to be surer.
STRAY_WORD_AT = 0.90
ARTICLES = ("a ", "an ", "the ", "some ")


@dataclass(frozen=True, slots=True)
class Sight:
    """All that is said of one picture."""

    reading: Reading
    spatial: Spatial


def sight(look: Look, vocabulary: Vocabulary) -> Sight:
    """Decide what to say. Of a photograph the classifier speaks, or else a sure concept; of a
    drawing with one thing in it, the whole, and the glimpse as much unless it is a large one."""
    sort = _sort(look)
    concepts, things = softmax(look.concepts), softmax(look.thing_concepts)
    kept = _left_to_right(look, _is_kept(look, sort, concepts, things))
    lone = sort == THINGS and len(kept) == 1
    if lone:
        share = 1 if _area(look.boxes[kept[0]]) >= LARGE_FROM else 0.5
        things[kept] = share * concepts + (1 - share) * things[kept]
    things = _agreed(things, kept)
    probably_at = LONE_PROBABLY_AT if lone else CONCEPT_PROBABLY_AT
    named = {int(i): name_concept(things[i], vocabulary.concepts, probably_at) for i in kept}
    seconds = {i: _second(things[i], named[i], vocabulary.concepts) for i in named}

    reading = Reading(-1)
    if sort == PHOTO:
        reading = describe(softmax(look.classes), vocabulary)
        sure = concepts.max() >= CONCEPT_IN_PHOTO_AT and not is_shape(vocabulary)[concepts.argmax()]
        if reading.certainty != CLEAR and sure:
            reading = name_concept(concepts, vocabulary.concepts)
    elif lone:
        (reading,) = named.values()
    elif sort == NOTHING or (sort == THINGS and not len(kept)):
        reading = Reading(UNCLEAR)
    return Sight(reading, Spatial(sort, *_word(look, sort), _slots(look, sort, named, seconds)))


def spoken_of(look: Look) -> NDArray[np.int64]:
    """Which of the five glimpses have slots, from left to right."""
    concepts, things = softmax(look.concepts), softmax(look.thing_concepts)
    return _left_to_right(look, _is_kept(look, _sort(look), concepts, things))


def _left_to_right(look: Look, is_kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    kept = np.flatnonzero(is_kept)
    return kept[np.argsort(look.boxes[kept, 0] + look.boxes[kept, 2], kind="stable")]


def _sort(look: Look) -> int:
    sort = int(np.argmax(look.sorts))
    if sort in (TEXT, CHART, NOTHING) and look.word_probability < WORD_CLEAR_AT:
        return THINGS if look.objectness.max() >= SURE_THING_AT else sort
    return sort


def is_shape(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Which concepts [C] are shapes."""
    table, shape = vocabulary.concepts, vocabulary.names.index(SHAPE)
    return (table.kind_of == shape) | (table.broad_of == shape) | (table.rows == shape)


def _second(probabilities: NDArray[np.float32], reading: Reading, table: Table) -> int:
    """What else a thing may be: the likeliest concept that it isn't said to be, or -1."""
    best, other = (int(i) for i in np.argsort(-probabilities, kind="stable")[:2])
    second = other if reading.name == table.rows[best] else best
    return int(table.rows[second]) if probabilities[second] >= SECOND_AT else -1


def _agreed(things: NDArray[np.float32], kept: NDArray[np.int64]) -> NDArray[np.float32]:
    """Probabilities [5, C] where kept things that look alike share the mean of theirs."""
    agreed = things.copy()
    if len(kept):
        said = things[kept]
        unit = said / np.sqrt((said**2).sum(axis=1, keepdims=True))
        alike = (unit @ unit.T >= ALIKE_FROM).astype(np.float32)
        agreed[kept] = alike @ said / alike.sum(axis=1, keepdims=True)
    return agreed


def _is_part(look: Look, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the five boxes lie over the largest kept one, where that is large."""
    areas = np.array([_area(box) for box in look.boxes])
    largest = int(np.argmax(np.where(kept, areas, 0)))
    low = np.maximum(look.boxes[:, :2], look.boxes[largest, :2])
    high = np.minimum(look.boxes[:, 2:], look.boxes[largest, 2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    over = common >= PART_FROM * np.minimum(areas, areas[largest])
    over[largest] = False
    return over & kept[largest] & (areas[largest] >= LARGE_FROM)


def _area(box: NDArray[np.float32]) -> np.float32:
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0)


def _is_kept(
    look: Look, sort: int, concepts: NDArray[np.float32], things: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which of the five glimpses are spoken of."""
    if sort == THINGS:
        kept = look.objectness >= THING_AT
        if not kept.any():
            # The surest one, where the whole has a name.
            kept[0] = concepts.max() >= LONE_PROBABLY_AT
        return kept & ~_is_part(look, kept)
    if sort == PHOTO:
        named = things.max(axis=1) >= NAME_IN_PHOTO_AT
        return named & (look.objectness >= THING_IN_PHOTO_AT)
    return np.zeros(len(look.boxes), bool)


def _word(look: Look, sort: int) -> tuple[int, int]:
    """Certainty and row of the word, -1 and -1 for none."""
    expected = sort in (TEXT, CHART)
    if sort != NOTHING and look.word_probability >= (WORD_CLEAR_AT if expected else STRAY_WORD_AT):
        return CLEAR, look.word
    if expected and look.word_probability >= WORD_PROBABLY_AT:
        return PROBABLY, look.word
    return -1, -1


def _surfaces(look: Look, *, lone: bool) -> NDArray[np.int64]:
    """The surface [5] of each of the five things, or -1."""
    probabilities = softmax(look.thing_surfaces)[:, : len(SURFACES)]
    best = probabilities.argmax(axis=1)
    logits = look.thing_surfaces[:, : len(SURFACES)]
    lead = logits.max(axis=1, keepdims=True) - logits
    is_teal = (lead[:, GREEN] < TEAL_TO_GREEN) & (lead[:, PURPLE] >= TEAL_FROM_PURPLE)
    is_brown = (lead[:, BROWN] < BROWN_TO_RED) & lone
    for other in (ORANGE, PINK):
        is_brown &= lead[:, other] >= BROWN_FROM_OTHERS
    said = np.where((best == RED) & is_brown, BROWN, best)
    untold = (probabilities.max(axis=1) < SURFACE_AT) | ((best == BLUE) & is_teal)
    return np.where(untold, -1, said)


def _slots(
    look: Look, sort: int, named: dict[int, Reading], seconds: dict[int, int]
) -> tuple[Slot, ...]:
    """The slots of the kept glimpses, which are named from left to right."""
    surfaces = _surfaces(look, lone=sort == THINGS and len(named) == 1)
    heights = look.boxes[:, 1] + look.boxes[:, 3]
    from_top = sorted(sorted(named), key=lambda i: heights[i])
    names = [reading.name for reading in named.values()]
    slots = []
    for order, i in enumerate(named):
        row, column, size = place(tuple(look.boxes[i]))
        name = named[i].name
        certainty = CLEAR if named[i].certainty == CLEAR else PROBABLY
        number, rank = names.count(name), from_top.index(i)
        slots.append(
            Slot(
                *(certainty, number, int(surfaces[i]), name, seconds[i]),
                *(row, column, order, rank, size),
            )
        )
    return tuple(slots)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)


def thing_rows(vocabulary: Vocabulary, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [n_names + 1, 4]: the token ids of the names without their articles, blank-filled.

    What is no concept's name, kind or broad kind is no thing's name either, and stays blank.
    """
    table = vocabulary.concepts
    rows = np.repeat(fill((), THING_NAME, tokenizer), len(vocabulary.names) + 1, axis=0)
    said = np.unique(np.concatenate([table.rows, table.kind_of, table.broad_of]))
    said = said[said >= 0]
    names = [_without_article(vocabulary.names[i]) for i in said]
    rows[said] = fill(names, THING_NAME, tokenizer)[:-1]
    return rows


def word_rows(words: Sequence[str], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [n_words + 1, 4]: the token ids of the words of words.txt, blank-filled."""
    return fill(words, WORD, tokenizer)


def _without_article(name: str) -> str:
    return next((name.removeprefix(a) for a in ARTICLES if name.startswith(a)), name)


def number_said(spatial: Spatial) -> int:
    """The number of things that is told: that there are none is told of a drawing only."""
    return len(spatial.slots) if spatial.slots or spatial.sort == THINGS else -1


def write_spatial(
    spatial: Spatial,
    rows: NDArray[np.int64],
    words: NDArray[np.int64],
    tokenizer: Tokenizer,
) -> NDArray[np.int64]:
    """Return the ids [81] whose embeddings the projector gives for `spatial`.

    `rows` are those of `thing_rows`, `words` those of `word_rows`.
    """
    head = [
        said_rows(NUMBERS, tokenizer)[number_said(spatial)],
        said_rows(CERTAINTIES, tokenizer)[spatial.word_certainty],
        words[spatial.word],
    ]
    tables = slot_tables(rows, tokenizer)
    things = [
        table[field]
        for slot in spatial.slots
        for table, field in zip(tables, astuple(slot), strict=True)
    ]
    written = np.concatenate([*head, *things])
    ids = np.full(SPATIAL_TOKENS, rows[-1, 0])
    ids[: len(written)] = written
    return ids


def slot_tables(rows: NDArray[np.int64], tokenizer: Tokenizer) -> tuple[NDArray[np.int64], ...]:
    """The token ids [n + 1, width] of all that each field of a `Slot` can say, in its order."""
    before, after = (CERTAINTIES, NUMBERS, SURFACES), (ROWS, COLUMNS, RANKS, RANKS, SIZES)
    first, last = ([said_rows(words, tokenizer) for words in lists] for lists in (before, after))
    # Of a long runner-up the first tokens have to do.
    return (*first, rows, rows[:, :SECOND_NAME], *last)
