"""What the trained heads told of made-up pictures, beside what was true of them.

Simulated errors are guesses; these are the real ones, for the last part of the training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from conversations import Picture
from looks import load_looks
from numpy.typing import NDArray
from projector import UNCLEAR, Reading, Vocabulary
from seen import Look, Scene
from simulate import NOTHING, THINGS, Known, SeenThing, Simulator
from spatial_projector import Sight, sight, spoken_of

# Overlap over union from which a slot tells of a thing.
SAME_AT = 0.3
# Of 2,500 things in looks.npz, drawn from cutouts that the heads were trained on, 93% have the
# right name first. Gaussian noise on the concepts' logits, whose deviation is exponential with
# this mean for each sort of thing, then this factor, makes it 70%, as it is for held-out cutouts,
# with as many right at every level of certainty (97% to 15%), and 80% among the first three.
NOISE, FACTOR = 2.0, 0.9
# The share of the noise's variance that alike things have in common.
COMMON = 0.8


class RealPictures:
    """The pictures of things and of nothing in a file of looks, as unsure as new ones would be;
    print has its own reader, and photographs have no scene."""

    def __init__(self, path: Path, vocabulary: Vocabulary, simulator: Simulator) -> None:
        self._vocabulary, self._simulator = vocabulary, simulator
        self._looks = [
            (scene, look) for scene, look in load_looks(path) if scene.sort in (NOTHING, THINGS)
        ]

    def draw(self, rng: random.Random) -> Picture:
        while True:
            scene, look = rng.choice(self._looks)
            look = unfamiliar(look, np.random.default_rng(rng.getrandbits(64)))
            seen = sight(look, self._vocabulary)
            if scene.sort == NOTHING:
                return Picture(seen, Known(NOTHING, Reading(UNCLEAR)))
            if seen.spatial.sort == THINGS:
                return Picture(seen, known(scene, look, seen, self._simulator))


def unfamiliar(look: Look, rng: np.random.Generator) -> Look:
    """The look on a picture like this one, of drawings that the heads have not been trained on."""
    noises: dict[int, NDArray[np.float32]] = {}

    def noisy(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        concept = int(logits.argmax())
        if concept not in noises:
            noises[concept] = rng.exponential(NOISE) * rng.normal(size=(2, logits.size))
        common, own = noises[concept][0], rng.permutation(noises[concept][1])
        return FACTOR * (logits + COMMON**0.5 * common + (1 - COMMON) ** 0.5 * own)

    things = np.stack([noisy(logits) for logits in look.thing_concepts])
    return replace(
        look,
        concepts=noisy(look.concepts).astype(np.float32),
        thing_concepts=things.astype(np.float32),
    )


def known(scene: Scene, look: Look, seen: Sight, simulator: Simulator) -> Known:
    """What of `scene` the slots of `seen` tell: each thing by the first slot that covers it."""
    left = list(scene.things)
    things: list[SeenThing] = []
    for slot, box in zip(seen.spatial.slots, look.boxes[spoken_of(look)], strict=True):
        found = max(left, key=lambda thing: overlap(thing.box, box), default=None)
        if found is not None and overlap(found.box, box) >= SAME_AT:
            left.remove(found)
            things.append(simulator.seen(found, slot))
    things.sort(key=lambda thing: thing.centre)
    missed = frozenset(name for thing in left for name in simulator.names_of(thing.concept))
    return Known(THINGS, seen.reading, tuple(things), len(scene.things), missed)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)
