"""Made-up pictures as the vision encoder would tell of them, errors included, and the truth.

No pixels are involved. A scene is made up; slots tell of it what real heads would: some names
are of look-alikes, now and then a thing is missed or told twice, a colour or a word is wrong.
`Known` is what the decoder should say: the truth, as far as the slots speak of it. Since the
answers are true where the slots are not, the decoder's probabilities learn how far to trust
each certainty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from projector import CLEAR, PROBABLY, UNCLEAR, Reading, Vocabulary
from seen import COLOURS, MAX_THINGS, SORTS, SURFACES, Scene, Slot, Spatial, Thing, place
from spatial_projector import Sight

PHOTO, THINGS, TEXT, CHART, NOTHING = range(len(SORTS))
SORT_SHARES = {THINGS: 0.83, TEXT: 0.07, CHART: 0.05, NOTHING: 0.05}
NUMBER_SHARES = (0.36, 0.25, 0.18, 0.12, 0.09)
# Errors of the heads, by what they say of their certainty.
RIGHT = {CLEAR: 0.95, PROBABLY: 0.58}
CLEAR_SHARE = 0.55
SURFACE_WRONG, SURFACE_UNSAID, MISSED, DOUBLED = 0.07, 0.06, 0.04, 0.02
# How often a runner-up is told, and how often it is the truth where the name is not.
SECOND_TOLD = {CLEAR: 0.15, PROBABLY: 0.75}
SECOND_RIGHT = 0.30
# Of centres and sides, in shares of the picture.
JITTER = 0.01
STRAY_WORD = 0.03
# How much print is not read.
UNREAD = 0.25
# How often only the kind, or no name at all, is told.
KIND_ONLY, UNNAMED = 0.10, 0.05
# The share of classifier readings that name a look-alike.
READING_WRONG = {CLEAR: 0.18, PROBABLY: 0.50}


@dataclass(frozen=True, slots=True)
class SeenThing:
    """What is true of a thing that a slot tells of. `exact` is a row of the vocabulary; `name`
    is no more exact than the slot's, or -1; `true_names` all names that fit it."""

    exact: int
    name: int
    true_names: frozenset[int]
    certainty: int
    surface: int
    row: int
    column: int
    size: int
    centre: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Known:
    """What can be said of a picture. `things` are from left to right, `n_things` counts also
    those that no slot tells of, whose names are `missed`."""

    sort: int
    reading: Reading
    things: tuple[SeenThing, ...] = ()
    n_things: int = 0
    missed: frozenset[int] = frozenset()
    word: str = ""
    word_certainty: int = -1


class Simulator:
    """Seeded by the `random.Random` of each call. `flawless` heads make no errors, but stay as
    unsure as others are."""

    def __init__(self, vocabulary: Vocabulary, words: list[str], *, flawless: bool = False) -> None:
        self._vocabulary = vocabulary
        self._flawless = flawless
        self._jitter = 0.0 if flawless else JITTER
        self._words = words
        self._row_of_word = {word: row for row, word in enumerate(words)}
        self._letters = [w for w in words if w.isalpha()]
        self._digits = [w for w in words if w.isdigit()]
        table = vocabulary.concepts
        self._by_kind: dict[int, list[int]] = {}
        self._by_broad: dict[int, list[int]] = {}
        for concept in range(len(table.rows)):
            self._by_kind.setdefault(int(table.kind_of[concept]), []).append(concept)
            self._by_broad.setdefault(int(table.broad_of[concept]), []).append(concept)
        shape = vocabulary.names.index("a shape")
        self.shapes = [
            c for c in range(len(table.rows)) if shape in (table.kind_of[c], table.broad_of[c])
        ]

    def picture(self, rng: random.Random) -> tuple[Sight, Known]:
        (sort,) = rng.choices(list(SORT_SHARES), list(SORT_SHARES.values()))
        if sort == THINGS:
            return self._with_stray_word(*self.told(self.scene(rng), rng), rng)
        if sort == NOTHING:
            reading = Reading(UNCLEAR)
            return Sight(reading, Spatial(NOTHING)), Known(NOTHING, reading)
        return self._print(sort, rng)

    def several_things(self, rng: random.Random) -> tuple[Sight, Known]:
        """A picture of two things at least."""
        while len((scene := self.scene(rng)).things) < 2:
            pass
        return self.told(scene, rng)

    def _errs(self, rng: random.Random, share: float) -> bool:
        return rng.random() < share and not self._flawless

    # Scenes.

    def scene(self, rng: random.Random) -> Scene:
        (number,) = rng.choices(range(1, MAX_THINGS + 1), NUMBER_SHARES)
        shapes_only = rng.random() < 0.3
        pool = self.shapes if shapes_only else range(len(self._vocabulary.concepts.rows))
        concepts = [rng.choice(pool) for _ in range(number)]
        if number > 1 and rng.random() < 0.45:
            # Several of one: what counting is about.
            for i in range(rng.randint(2, number)):
                concepts[i] = concepts[0]
        rng.shuffle(concepts)
        return Scene(THINGS, tuple(self._thing(c, box, rng) for c, box in _placed(concepts, rng)))

    def _thing(
        self, concept: int, box: tuple[float, float, float, float], rng: random.Random
    ) -> Thing:
        surface = rng.randrange(len(COLOURS))
        if concept not in self.shapes:
            draw = rng.random()
            surface = (
                -1 if draw < 0.35 else surface if draw < 0.85 else rng.randrange(len(SURFACES))
            )
        return Thing(concept, surface, box)

    # What is told of them.

    def told(self, scene: Scene, rng: random.Random) -> tuple[Sight, Known]:
        """The slots of a scene of things, and what can be said from them."""
        slots: list[tuple[tuple[float, float], Slot]] = []
        things: list[SeenThing] = []
        missed: set[int] = set()
        for thing in scene.things:
            if self._errs(rng, MISSED) and len(scene.things) > 1:
                missed |= self.names_of(thing.concept)
                continue
            slot, seen = self._tell(thing, rng)
            things.append(seen)
            for _ in range(2 if self._errs(rng, DOUBLED) else 1):
                centre = tuple(c + rng.gauss(0, self._jitter) for c in thing.centre)
                slots.append(((centre[0], centre[1]), slot))
        slots = sorted(slots[:MAX_THINGS])
        names = [slot.name for _, slot in slots]
        heights = sorted(y for (_, y), _ in slots)
        written = tuple(
            replace(slot, number=names.count(slot.name), order=order, rank=heights.index(y))
            for order, ((_, y), slot) in enumerate(slots)
        )
        things.sort(key=lambda seen: seen.centre)
        reading = self._reading(written[0]) if len(written) == 1 else Reading(-1)
        sort = PHOTO if rng.random() < 0.04 else THINGS
        known = Known(sort, reading, tuple(things), len(scene.things), frozenset(missed))
        return Sight(reading, Spatial(sort, slots=written)), known

    def _tell(self, thing: Thing, rng: random.Random) -> tuple[Slot, SeenThing]:
        table = self._vocabulary.concepts
        certainty = CLEAR if rng.random() < CLEAR_SHARE else PROBABLY
        draw = rng.random()
        if draw < UNNAMED + KIND_ONLY:
            certainty = PROBABLY
        wrong = self._errs(rng, 1 - RIGHT[certainty])
        told = self._look_alike(thing.concept, rng) if wrong else thing.concept
        if draw < UNNAMED:
            name = -1
        elif draw < UNNAMED + KIND_ONLY:
            name = int(table.kind_of[told] if table.kind_of[told] >= 0 else table.broad_of[told])
        else:
            name = int(table.rows[told])
        second = self._second(thing.concept, name, certainty, rng)
        surface = thing.surface
        if self._errs(rng, SURFACE_WRONG):
            surface = rng.randrange(len(COLOURS))
        if rng.random() < SURFACE_UNSAID:
            surface = -1
        row, column, size = place(tuple(v + rng.gauss(0, self._jitter) for v in thing.box))  # type: ignore[arg-type]
        slot = Slot(certainty, 1, surface, name, second, row, column, 0, 0, size)
        return slot, self.seen(thing, slot)

    def _second(self, concept: int, name: int, certainty: int, rng: random.Random) -> int:
        """A runner-up other than `name`, or -1."""
        rows = self._vocabulary.concepts.rows
        if rng.random() >= SECOND_TOLD[certainty]:
            return -1
        right = rows[concept] != name and (self._flawless or rng.random() < SECOND_RIGHT)
        second = int(rows[concept if right else self._look_alike(concept, rng)])
        return second if second != name else -1

    def seen(self, thing: Thing, slot: Slot) -> SeenThing:
        """What is true of `thing` and no more than `slot` tells."""
        table = self._vocabulary.concepts
        exact, kind, broad = (
            int(column[thing.concept]) for column in (table.rows, table.kind_of, table.broad_of)
        )
        names = [n for n in (exact, kind, broad) if n >= 0]
        if exact in (slot.name, slot.second):
            pass
        elif slot.name < 0:
            names = []
        elif slot.name in names:
            names = names[names.index(slot.name) :]
        elif slot.name not in table.rows:
            wider = (kind, broad) if slot.name in table.kind_of else (broad,)
            names = [n for n in wider if n >= 0] or names
        # What has no one colour is of the one that is told.
        both = slot.surface >= 0 and thing.surface >= 0
        surface = thing.surface if both else slot.surface
        row, column, size = place(thing.box)
        name = names[0] if names else -1
        fitting, certainty = frozenset(names), slot.certainty
        return SeenThing(
            *(exact, name, fitting, certainty), surface, row, column, size, thing.centre
        )

    def names_of(self, concept: int) -> set[int]:
        table = self._vocabulary.concepts
        return {int(c[concept]) for c in (table.rows, table.kind_of, table.broad_of)} - {-1}

    def _reading(self, slot: Slot) -> Reading:
        """Of a picture with one thing the global slots tell the same."""
        if slot.name < 0:
            return Reading(UNCLEAR)
        table = self._vocabulary.concepts
        (exact,) = np.nonzero(table.rows == slot.name)
        if len(exact):
            kind, broad = int(table.kind_of[exact[0]]), int(table.broad_of[exact[0]])
            return Reading(slot.certainty, slot.name, -1, kind, broad)
        (of_kind,) = np.nonzero(table.kind_of == slot.name)
        if len(of_kind):
            broad = int(table.broad_of[of_kind[0]])
            return Reading(slot.certainty, slot.name, -1, slot.name, broad)
        return Reading(PROBABLY, slot.name, -1, -1, slot.name)

    def _look_alike(self, concept: int, rng: random.Random) -> int:
        table = self._vocabulary.concepts
        draw = rng.random()
        pool = list(range(len(table.rows)))
        if draw < 0.6 and table.kind_of[concept] >= 0:
            pool = self._by_kind[int(table.kind_of[concept])]
        elif draw < 0.85:
            pool = self._by_broad[int(table.broad_of[concept])]
        return rng.choice(pool)

    # Print.

    def _print(self, sort: int, rng: random.Random) -> tuple[Sight, Known]:
        pool = self._letters if sort == TEXT and rng.random() < 0.85 else self._digits
        word, reading = rng.choice(pool), Reading(-1)
        if rng.random() < UNREAD:
            return Sight(reading, Spatial(sort)), Known(sort, reading)
        certainty = CLEAR if rng.random() < CLEAR_SHARE else PROBABLY
        told = word
        if self._errs(rng, 1 - RIGHT[certainty]):
            near = [w for w in pool if len(w) == len(word)]
            # Of a handful of the same length, the one that shares most letters.
            told = max(
                rng.sample(near, min(40, len(near))),
                key=lambda w: sum(a == b for a, b in zip(w, word, strict=True)) - 9 * (w == word),
            )
        spatial = Spatial(sort, certainty, self._row_of_word[told])
        return Sight(reading, spatial), Known(sort, reading, word=word, word_certainty=certainty)

    def _with_stray_word(
        self, sight: Sight, known: Known, rng: random.Random
    ) -> tuple[Sight, Known]:
        """Now and then a word is read among things, most of these times rightly."""
        if rng.random() >= STRAY_WORD:
            return sight, known
        word = rng.choice(self._letters)
        spatial = replace(sight.spatial, word_certainty=CLEAR, word=self._row_of_word[word])
        if not self._errs(rng, 1 - RIGHT[CLEAR]):
            known = replace(known, word=word, word_certainty=CLEAR)
        return replace(sight, spatial=spatial), known

    # Photographs.

    def true_reading(self, reading: Reading, rng: random.Random) -> Reading:
        """What a photograph shows whose reading is `reading`: mostly just that."""
        kind_of, broad_of = self._vocabulary.kind_of, self._vocabulary.broad_of
        wrong = self._errs(rng, READING_WRONG.get(reading.certainty, 0))
        if reading.name >= len(kind_of) or not wrong:
            return reading
        same = np.flatnonzero(
            kind_of == reading.kind if reading.kind >= 0 else broad_of == reading.broad
        )
        true = int(rng.choice(same if rng.random() < 0.7 else range(len(kind_of))))
        return Reading(reading.certainty, true, -1, int(kind_of[true]), int(broad_of[true]))


def _placed(
    concepts: list[int], rng: random.Random
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Boxes that hardly overlap; a single thing is often large."""
    boxes: list[tuple[float, float, float, float]] = []
    tries = 0
    while len(boxes) < len(concepts):
        tries += 1
        largest = 0.95 if len(concepts) == 1 else 0.55 if len(concepts) < 4 else 0.40
        width = rng.uniform(0.1, largest) * 0.985 ** min(tries, 60)
        height = min(width * rng.uniform(0.7, 1.4), 0.95)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = (x, y, x + width, y + height)
        if all(_apart(box, other) for other in boxes) or tries > 400:
            boxes.append(box)
    return list(zip(concepts, boxes, strict=True))


def _apart(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
