"""What scenes are composed of: cutouts, as they are or recoloured, and shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from captions import Concept
from pictures import Cutout
from PIL import Image, ImageOps
from seen import COLOURS
from shapes import PROPORTIONED, SHAPES, draw_shape
from surfaces import dominant_colour, shade

SHAPE_SHARE = 0.3  # of the concepts drawn for a scene, where there are cutouts too
RECOLOURED = 0.15  # of the drawings
# Mirrored they would be something else, or show letters.
_NOT_MIRRORED = re.compile(
    r"\b(sign|symbol|clock|watch|calendar|newspaper|book|keyboard|dice|flag|crescent|dollar|euro|"
    r"pound|yen|money|banknote|note|clef|map|globe|letter|calculator|thermometer|hand|mark)\b"
)


@dataclass(frozen=True, slots=True)
class Item:
    """A thing before it has a place: RGBA, `surface` a row of SURFACES or -1. `turn`: by how many
    degrees it may be rotated. `proportioned`: squashed it would be another thing."""

    image: Image.Image
    concept: int
    surface: int
    turn: float
    mirrors: bool
    proportioned: bool


class Stock:
    def __init__(self, cutouts: Sequence[Cutout], concepts: Sequence[Concept]) -> None:
        self._by_concept: dict[int, list[Cutout]] = defaultdict(list)
        for cutout in cutouts:
            self._by_concept[cutout.concept].append(cutout)
        self._names = [re.sub(r"^an? ", "", concept.name) for concept in concepts]
        self._shapes = [row for row, name in enumerate(self._names) if name in SHAPES]
        self._drawn = sorted(self._by_concept)
        self._colours: dict[str, int] = {}

    def pick(self, rng: np.random.Generator, count: int) -> list[Item]:
        """So many things: often several of one concept, that are alike or not."""
        groups = self._groups(rng, count)
        shapes = rng.random() < SHAPE_SHARE
        items: list[Item] = []
        for concept, number in zip(self._concepts(rng, len(groups), shapes), groups, strict=True):
            alike = rng.random() < 0.5
            first = self._item(rng, concept)
            items += [first]
            items += [first if alike else self._item(rng, concept) for _ in range(number - 1)]
        return [items[i] for i in rng.permutation(len(items))]

    def _groups(self, rng: np.random.Generator, count: int) -> list[int]:
        """How many of each concept: all of one, all different, or two to three kinds."""
        draw = rng.random()
        if count == 1 or draw < 0.42:
            return [count]
        if draw < 0.7 or count == 2:
            return [1] * count
        kinds = int(rng.integers(2, min(3, count - 1) + 1))
        cuts = np.sort(rng.choice(np.arange(1, count), kinds - 1, replace=False))
        return np.diff([0, *cuts.tolist(), count]).tolist()

    def _concepts(self, rng: np.random.Generator, count: int, shapes: bool) -> list[int]:
        """Different concepts; of a scene of shapes now and then one is not a shape."""
        drawn = self._drawn or self._shapes
        pool = self._shapes if shapes else drawn
        chosen: list[int] = []
        while len(chosen) < count:
            other = rng.random() < 0.1
            source = drawn if other else pool
            concept = source[rng.integers(len(source))]
            if concept not in chosen:
                chosen.append(concept)
        return chosen

    def _item(self, rng: np.random.Generator, concept: int) -> Item:
        name, cutouts = self._names[concept], self._by_concept.get(concept, [])
        if name in SHAPES and (not cutouts or rng.random() < 0.8):
            rgba, surface = draw_shape(rng, name)
            return Item(Image.fromarray(rgba), concept, surface, 0, False, name in PROPORTIONED)
        cutout = cutouts[rng.integers(len(cutouts))]
        image = Image.fromarray(cutout.rgba)
        if not cutout.photographic and rng.random() < RECOLOURED:
            image = _recoloured(rng, image)
            surface = dominant_colour(np.asarray(image))
        else:
            surface = self._colour_of(cutout)
        mirrors = not _NOT_MIRRORED.search(name)
        return Item(image, concept, surface, 12, mirrors, False)

    def _colour_of(self, cutout: Cutout) -> int:
        if cutout.key not in self._colours:
            self._colours[cutout.key] = dominant_colour(cutout.rgba)
        return self._colours[cutout.key]


def _recoloured(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """All hues turned by the same, or everything in the shades of one colour."""
    if rng.random() < 0.5:
        hue, saturation, value = image.convert("RGB").convert("HSV").split()
        turn = int(rng.integers(30, 226))
        hue = hue.point([(v + turn) % 256 for v in range(256)])
        result = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    else:
        colour = shade(rng, int(rng.integers(len(COLOURS))))
        grey = ImageOps.autocontrast(image.convert("L"), mask=image.getchannel("A"))
        dark = tuple(v // 4 for v in colour)
        pale = tuple(255 - (255 - v) // 4 for v in colour)
        result = ImageOps.colorize(grey, dark, pale, colour)
    result.putalpha(image.getchannel("A"))
    return result
