"""What edgevlm-tiny's projector says of a picture as a whole: honest words for scores.

It reads the classifier's probabilities the way a careful person would say them. A class that
is likely enough is named; where only its kind is (six breeds share the evidence for "a dog"),
the kind is; two classes that are about equal become "either ... or"; and below that nothing
is named at all, so that the decoder has no word from which to invent. Concepts, which a head
of ours scores, are named by the shorter rules of `name_concept`. What is chosen is written as
tokens of the decoder's own vocabulary, in fixed slots:

    certainty | name | second name | kind | broad kind | sort of picture

spatial_projector.py goes on with what stands where; projector_graph.py is both as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from seen import SORTS, SPATIAL_TOKENS
from tokenizers import Tokenizer

CLASSES = Path(__file__).with_name("classes.txt")
CONCEPTS = Path(__file__).with_name("concepts.txt")

# Slot widths in tokens.
NAME, KIND, BROAD = 6, 4, 3
GLOBAL_TOKENS = 1 + 2 * NAME + KIND + BROAD + 1
N_TOKENS = GLOBAL_TOKENS + SPATIAL_TOKENS
BLANK = " -"
CERTAINTIES = (" clear", " probably", " either", " unclear")
CLEAR, PROBABLY, EITHER, UNCLEAR = range(4)

# Chosen by hand on 101 labelled pictures of Debian's gcompris-qt-data, none of which is in
# photos.toml. The classifier was trained with label smoothing, so 0.35 is already strong.
NAME_AT = 0.35
KIND_AT = 0.35
PROBABLY_AT = 0.20
# Two classes in five are animals, so this much is weak evidence: it is never said as certain.
BROAD_AT = 0.50
# A runner-up this close to the best one makes the answer "either ... or".
RIVAL = 0.60
# Probabilities from which a concept or its kind is clear (of things in training scenes, 95% are
# then right), from which it is probable, and from which it is where nothing else is in sight.
CONCEPT_CLEAR_AT = 0.80
CONCEPT_PROBABLY_AT = 0.40
LONE_PROBABLY_AT = 0.20


@dataclass(frozen=True, slots=True)
class Table:
    """What scores are about, as indices of `Vocabulary.names`: names, kinds, broad kinds [n]."""

    rows: NDArray[np.int64]
    kind_of: NDArray[np.int64]
    broad_of: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything the projector can name: classes, then their kinds, then their broad kinds, then
    what concepts.txt adds to these.

    `kind_of` and `broad_of` [1000] index `names`, or are -1. `concepts` [C] is the table of
    concepts.txt in its order.
    """

    names: tuple[str, ...]
    kind_of: NDArray[np.int64]
    broad_of: NDArray[np.int64]
    concepts: Table

    @property
    def concept_rows(self) -> NDArray[np.int64]:
        return self.concepts.rows


@dataclass(frozen=True, slots=True)
class Reading:
    """What is said of a picture as a whole: indices of `Vocabulary.names`, -1 for nothing, as is
    the certainty where others than the whole are spoken of."""

    certainty: int
    name: int = -1
    second: int = -1
    kind: int = -1
    broad: int = -1


def load_vocabulary(classes: Path = CLASSES, concepts: Path = CONCEPTS) -> Vocabulary:
    names, kinds, broads = _columns(classes)
    groups = []
    for column in (kinds, broads):
        row_of = {group: i for i, group in enumerate(sorted(set(column) - {""}), len(names))}
        groups.append(np.array([row_of.get(cell, -1) for cell in column]))
        names += row_of
    columns = _columns(concepts)
    # The first of equal names stands for all: some classes are called what their kind is.
    row_of = {name: i for i, name in reversed(list(enumerate(names)))}
    for name in (cell for column in columns for cell in column if cell):
        if name not in row_of:
            row_of[name] = len(names)
            names.append(name)
    rows = [np.array([row_of.get(c, -1) for c in column], np.int64) for column in columns]
    return Vocabulary(tuple(names), *groups, Table(*rows))


def _columns(path: Path) -> list[list[str]]:
    """Names, kinds and broad kinds of a list whose cells stand between bars."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[line.split("|")[i].strip() for line in lines] for i in range(3)]


def describe(probabilities: NDArray[np.float32], vocabulary: Vocabulary) -> Reading:
    """Read class probabilities [1000]."""
    best, rival = (int(i) for i in np.argsort(-probabilities, kind="stable")[:2])
    kind, broad = int(vocabulary.kind_of[best]), int(vocabulary.broad_of[best])
    # The rival's mass counts for the kind where they share one.
    kind_mass = float(probabilities[vocabulary.kind_of == kind].sum()) if kind >= 0 else 0.0
    broad_mass = float(probabilities[vocabulary.broad_of == broad].sum()) if broad >= 0 else 0.0
    top, second = float(probabilities[best]), float(probabilities[rival])
    close = second >= RIVAL * top
    known_kind = kind if kind_mass >= KIND_AT else -1
    if top >= NAME_AT and not close:
        return Reading(CLEAR, best, -1, kind, broad)
    if known_kind >= 0:
        return Reading(CLEAR, known_kind, -1, known_kind, broad)
    if close and top + second >= NAME_AT:
        return Reading(EITHER, best, rival, -1, -1)
    if top >= PROBABLY_AT:
        return Reading(PROBABLY, best, -1, kind, broad)
    if broad_mass >= BROAD_AT:
        return Reading(PROBABLY, broad, -1, -1, broad)
    return Reading(UNCLEAR, -1, -1, -1, -1)


def name_concept(
    probabilities: NDArray[np.float32], table: Table, probably_at: float = CONCEPT_PROBABLY_AT
) -> Reading:
    """Read concept probabilities [C]: the likeliest, else its kind, else its broad kind."""
    best = int(np.argmax(probabilities))
    name, kind, broad = (int(a[best]) for a in (table.rows, table.kind_of, table.broad_of))
    if probabilities[best] >= probably_at:
        sure = probabilities[best] >= CONCEPT_CLEAR_AT
        return Reading(CLEAR if sure else PROBABLY, name, -1, kind, broad)
    kind_mass = _mass(probabilities, table, table.kind_of, kind)
    if kind_mass >= probably_at:
        sure = kind_mass >= CONCEPT_CLEAR_AT
        return Reading(CLEAR if sure else PROBABLY, kind, -1, kind, broad)
    if _mass(probabilities, table, table.broad_of, broad) >= BROAD_AT:
        return Reading(PROBABLY, broad, -1, -1, broad)
    return Reading(UNCLEAR)


def _mass(
    probabilities: NDArray[np.float32], table: Table, group_of: NDArray[np.int64], group: int
) -> float:
    """The summed probability of what is in `group`, or is called what the group is."""
    if group < 0:
        return 0.0
    return float(probabilities[(group_of == group) | (table.rows == group)].sum())


def token_rows(vocabulary: Vocabulary, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [n_names + 1, 6]: the token ids of every name, blank-filled; the last is blank."""
    return fill(vocabulary.names, NAME, tokenizer)


def write(
    reading: Reading, sort: int, rows: NDArray[np.int64], tokenizer: Tokenizer
) -> NDArray[np.int64]:
    """Return the ids [21] whose embeddings the projector gives for `reading` and the sort."""
    return np.concatenate(
        [
            said_rows(CERTAINTIES, tokenizer)[reading.certainty],
            rows[reading.name],
            rows[reading.second],
            rows[reading.kind][:KIND],
            rows[reading.broad][:BROAD],
            said_rows(SORTS, tokenizer)[sort],
        ]
    )


@cache
def said_rows(words: tuple[str, ...], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [n + 1, 1]: the token ids of words that are one token each; the last is blank."""
    return fill(words, 1, tokenizer)


def fill(texts: Sequence[str], width: int, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [n + 1, width]: the token ids of every text, blank-filled; the last is blank."""
    rows = np.full((len(texts) + 1, width), _ids(tokenizer, BLANK)[0])
    for row, text in zip(rows, texts, strict=False):
        ids = _ids(tokenizer, text)
        if len(ids) > width:
            raise ValueError(f"{text!r} has {len(ids)} tokens; {width} fit")
        row[: len(ids)] = ids
    return rows


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A word is a token with the space before it."""
    ids: list[int] = tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids
    return ids
