"""What the trained heads told of made-up pictures, beside what was true of them.

Simulated errors are guesses; these are the real ones, for the last part of the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from conversations import Picture
from looks import load_looks
from projector import UNCLEAR, Reading, Vocabulary
from seen import Look, Scene, Slot
from simulate import NOTHING, THINGS, Known, SeenThing, Simulator
from spatial_projector import Sight, sight

# Overlap over union from which a slot tells of a thing.
SAME_AT = 0.3


def real_pictures(path: Path, vocabulary: Vocabulary, simulator: Simulator) -> Iterator[Picture]:
    """The pictures of things and of nothing in `path`, where the heads take them for such; print
    has its own reader, and photographs have no scene."""
    for scene, look in load_looks(path):
        seen = sight(look, vocabulary)
        if scene.sort == NOTHING:
            yield Picture(seen, Known(NOTHING, Reading(UNCLEAR)))
        elif scene.sort == seen.spatial.sort == THINGS:
            yield Picture(seen, known(scene, look, seen, simulator))


def known(scene: Scene, look: Look, seen: Sight, simulator: Simulator) -> Known:
    """What of `scene` the slots of `seen` tell: each thing by the first slot that covers it."""
    left = list(scene.things)
    things: list[SeenThing] = []
    for slot, box in zip(seen.spatial.slots, slot_boxes(look, seen.spatial.slots), strict=True):
        found = max(left, key=lambda thing: overlap(thing.box, box), default=None)
        if found is not None and overlap(found.box, box) >= SAME_AT:
            left.remove(found)
            things.append(simulator.seen(found, slot))
    things.sort(key=lambda thing: thing.centre)
    missed = frozenset(name for thing in left for name in simulator.names_of(thing.concept))
    return Known(THINGS, seen.reading, tuple(things), len(scene.things), missed)


def slot_boxes(look: Look, slots: tuple[Slot, ...]) -> list[tuple[float, float, float, float]]:
    """Of pictures of things, slots tell of the glimpses that surely hold one, left to right."""
    kept = np.argsort(-look.objectness, kind="stable")[: len(slots)]
    boxes = [tuple(float(side) for side in look.boxes[i]) for i in kept]
    return sorted(boxes, key=lambda box: box[0] + box[2])  # type: ignore[arg-type, return-value]


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)
