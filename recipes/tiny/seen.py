"""What a picture shows: the truth about it, and what the vision encoder says of it.

`Scene` is the truth of a made-up picture. `Look` is what the trained heads measure on any
picture. `Sight` is what the projector makes of a look: the words it writes into the prompt,
in fixed slots of one token each unless a width is given:

    certainty | name 6 | second name 6 | kind 4 | broad kind 3 | sort    of the picture as a whole
    number of things
    certainty | word 4                                             printed, or a highest value
    five times, from left to right:
    certainty | how many of it | surface | name 4 | runner-up 3
        | row | column | rank from the left | rank from the top | size

A slot that says nothing is blank throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
MATERIALS = ("wooden", "metal", "stone")
SURFACES = COLOURS + MATERIALS
# Of a photograph the classifier's reading counts, of `things` that of the glimpses.
SORTS = ("photo", "things", "text", "chart", "nothing")
NUMBERS = ("none", "one", "two", "three", "four", "five")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
RANKS = ("first", "second", "third", "fourth", "fifth")
SIZES = ("small", "medium", "large")

MAX_THINGS = 5
THING_NAME, SECOND_NAME, WORD = 4, 3, 4
SLOT_WIDTH = 8 + THING_NAME + SECOND_NAME
SPATIAL_TOKENS = 1 + 1 + WORD + MAX_THINGS * SLOT_WIDTH

# Shares of the picture's area, and of its sides, at which the words change.
SIZE_EDGES = (0.04, 0.16)
PLACE_EDGES = (0.38, 0.62)


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene. `concept` is a row of concepts.txt, `surface` one of SURFACES or -1
    where it has no one colour, `box` x0, y0, x1, y1 in shares of the picture."""

    concept: int
    surface: int
    box: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """The truth of a picture. `sort` indexes SORTS; `word` is what is printed, or a chart's
    highest value in digits; `chart` is "bar" or "line"."""

    sort: int
    things: tuple[Thing, ...] = ()
    word: str = ""
    chart: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What the heads measure on one picture, float32; C concepts, S = len(SURFACES).

    classes: ImageNet logits [1000] of the whole picture.
    concepts: concept logits [C] of the whole picture.
    sorts: logits [len(SORTS)].
    boxes [5, 4], shares of the picture, x0 y0 x1 y1, most certain first.
    objectness [5]: probability that there is a thing.
    thing_concepts [5, C], thing_surfaces [5, S + 1]: logits; the last surface is "no one colour".
    words: row of words.txt and probability of the likeliest reading.
    """

    classes: NDArray[np.float32]
    concepts: NDArray[np.float32]
    sorts: NDArray[np.float32]
    boxes: NDArray[np.float32]
    objectness: NDArray[np.float32]
    thing_concepts: NDArray[np.float32]
    thing_surfaces: NDArray[np.float32]
    word: int
    word_probability: float


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing as said; every field indexes its word list. `certainty` is CLEAR or PROBABLY of
    projector.py; `name` indexes the projector's names or is -1 ("something"), `second` as well,
    for what else it may be; `surface` is -1 where none is said; `number` counts the slots of the
    same name, this one included; `order` ranks from the left, `rank` from the top."""

    certainty: int
    number: int
    surface: int
    name: int
    second: int
    row: int
    column: int
    order: int
    rank: int
    size: int


@dataclass(frozen=True, slots=True)
class Spatial:
    """What the spatial slots say. `word` is a row of words.txt or -1."""

    sort: int
    word_certainty: int = -1
    word: int = -1
    slots: tuple[Slot, ...] = field(default=())


def place(box: tuple[float, float, float, float]) -> tuple[int, int, int]:
    """Row, column and size of a box, as indices of ROWS, COLUMNS and SIZES."""
    x0, y0, x1, y1 = box
    row, column = (
        int(np.searchsorted(PLACE_EDGES, (a + b) / 2, side="right"))
        for a, b in ((y0, y1), (x0, x1))
    )
    size = int(np.searchsorted(SIZE_EDGES, (x1 - x0) * (y1 - y0), side="right"))
    return row, column, size
