"""Geometric shapes, flat and solid, as cutouts.

Each is drawn large and cropped to itself; composing makes it smaller, which smooths its edges.
A square never turns far, since it would become a diamond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw
from seen import COLOURS, SURFACES
from surfaces import draw_surface, shade

SIDE = 288  # longer side of a drawing in pixels
MATERIAL_SHARE, OUTLINED_SHARE, BORDERED_SHARE = 0.2, 0.1, 0.25

Points = NDArray[np.float64]  # corners [n, 2] in -1..1, y down


@dataclass(frozen=True, slots=True)
class Shape:
    """`turn`: by how many degrees it may turn either way and keep its name; `ratios`: range of
    width over height, or of height over width too where it may stand."""

    outline: Callable[[np.random.Generator], Points]
    turn: float
    ratios: tuple[float, float] = (1.0, 1.0)
    stands: bool = False


def _ngon(corners: int, start: float = -90.0) -> Points:
    angles = np.radians(start + np.arange(corners) * 360 / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _quarter_turned(rng: np.random.Generator, points: Points) -> Points:
    for _ in range(rng.integers(4)):
        points = points[:, ::-1] * (-1, 1)
    return points


def _box(_: np.random.Generator) -> Points:
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)


def _round(_: np.random.Generator) -> Points:
    return _ngon(96)


def _star(rng: np.random.Generator) -> Points:
    points = 5 if rng.random() < 0.75 else int(rng.integers(4, 9))
    radii = np.tile([1.0, rng.uniform(0.36, 0.52)], points)
    return _ngon(2 * points) * radii[:, None]


def _triangle(rng: np.random.Generator) -> Points:
    if rng.random() < 0.6:
        return _ngon(3)
    apex = -1.0 if rng.random() < 0.4 else rng.uniform(-0.6, 0.6)
    return np.array([(apex, -1), (1, 1), (-1, 1)])


def _heart(_: np.random.Generator) -> Points:
    t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16], axis=1)


def _cross(rng: np.random.Generator) -> Points:
    a = rng.uniform(0.2, 0.42)
    corners = [(a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1)]
    return np.array(corners + [(-x, -y) for x, y in corners])


def _arrow(rng: np.random.Generator) -> Points:
    shaft, neck, wing = rng.uniform(0.15, 0.35), rng.uniform(-0.1, 0.35), rng.uniform(0.6, 0.9)
    upper = [(-1, -shaft), (neck, -shaft), (neck, -wing), (1, 0)]
    corners = upper + [(x, -y) for x, y in reversed(upper[:3])]
    return _quarter_turned(rng, np.array(corners))


def _crescent(rng: np.random.Generator) -> Points:
    """A disc less a disc that is shifted: between the outer and the inner arc."""
    t = np.linspace(-np.pi / 2, np.pi / 2, 40)
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    inner = outer[::-1] * (rng.uniform(0.3, 0.65), 1)
    return _quarter_turned(rng, np.concatenate([outer, inner]))


FLAT = {
    "circle": Shape(_round, 0),
    "square": Shape(_box, 3),
    "rectangle": Shape(_box, 8, (1.5, 3.2), stands=True),
    "triangle": Shape(_triangle, 180, (0.75, 1.4)),
    "oval": Shape(_round, 25, (1.45, 2.2), stands=True),
    "star": Shape(_star, 180),
    "heart": Shape(_heart, 20, (0.9, 1.1)),
    "diamond": Shape(lambda _: _ngon(4), 4, (0.6, 1.0)),
    "pentagon": Shape(lambda _: _ngon(5), 180),
    "hexagon": Shape(lambda _: _ngon(6), 180),
    "cross": Shape(_cross, 8),
    "arrow": Shape(_arrow, 20),
    "crescent": Shape(_crescent, 30),
    "ring": Shape(_round, 0),
}
SOLID = ("cube", "ball", "cylinder", "cone")
# By their names in concepts.txt, without the article.
SHAPES = (*FLAT, *SOLID)
# Shapes that squashing the picture turns into others.
PROPORTIONED = frozenset({"circle", "square", "rectangle", "oval", "diamond", "ball", "cube"})


def draw_shape(rng: np.random.Generator, name: str) -> tuple[NDArray[np.uint8], int]:
    """One of SHAPES as sRGB with alpha [h, w, 4], cropped to itself, and its row of SURFACES."""
    if rng.random() < MATERIAL_SHARE:
        surface = int(rng.integers(len(COLOURS), len(SURFACES)))
    else:
        surface = int(rng.integers(len(COLOURS)))
    image = _solid(rng, name, surface) if name in SOLID else _flat(rng, name, surface)
    return np.asarray(image.crop(image.getchannel("A").getbbox())), surface


def _flat(rng: np.random.Generator, name: str, surface: int) -> Image.Image:
    points = _placed(rng, FLAT[name])
    mask = _filled(points)
    style = rng.random()
    image = _lit(draw_surface(rng, surface, SIDE), rng.uniform(0.8, 1.0), rng)
    if name == "ring":
        mask = _rim(points, rng.uniform(0.12, 0.3))
    elif style < OUTLINED_SHARE and surface < len(COLOURS):
        mask = _rim(points, rng.uniform(0.03, 0.08))
    elif style < OUTLINED_SHARE + BORDERED_SHARE:
        # The border is thin: the shape goes by the colour of what it encloses.
        image.paste(_border_colour(rng, surface), mask=_rim(points, rng.uniform(0.012, 0.035)))
    image.putalpha(mask)
    return image


def _placed(rng: np.random.Generator, shape: Shape) -> list[tuple[float, float]]:
    """Corners in pixels, stretched, turned and fitted into SIDE."""
    ratio = rng.uniform(*shape.ratios)
    if shape.stands and rng.random() < 0.5:
        ratio = 1 / ratio
    angle = np.radians(rng.uniform(-shape.turn, shape.turn)) if rng.random() < 0.6 else 0.0
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    points = (shape.outline(rng) * (ratio, 1)) @ turn
    points -= points.min(0)
    points *= (SIDE - 3) / points.max()
    return [(float(x) + 1, float(y) + 1) for x, y in points]


def _filled(points: list[tuple[float, float]]) -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def _rim(points: list[tuple[float, float]], share: float) -> Image.Image:
    """The part of a shape within that share of the side from its outline."""
    line = Image.new("L", (SIDE, SIDE))
    closed = [*points, *points[:2]]
    ImageDraw.Draw(line).line(closed, fill=255, width=round(2 * share * SIDE), joint="curve")
    return ImageChops.multiply(line, _filled(points))


def _border_colour(rng: np.random.Generator, surface: int) -> tuple[int, int, int]:
    dark = COLOURS.index("black")
    return shade(rng, dark if surface != dark and rng.random() < 0.7 else COLOURS.index("white"))


def _lit(image: Image.Image, darkest: float, rng: np.random.Generator) -> Image.Image:
    """The picture under a light that falls off a little along one direction, half of the time."""
    if rng.random() < 0.5:
        return image
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1:1:9j, -1:1:9j]
    fall = 0.5 + 0.35 * (x * np.cos(angle) + y * np.sin(angle))
    return _shaded(image, darkest + (1 - darkest) * fall.clip(0, 1))


def _shaded(image: Image.Image, light: NDArray[np.float64]) -> Image.Image:
    """The picture times light [h, w] in 0..1, stretched over it."""
    small = Image.fromarray((light * 255).clip(0, 255).astype(np.uint8))
    full = small.resize(image.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(image, Image.merge("RGB", [full] * 3))


def _solid(rng: np.random.Generator, name: str, surface: int) -> Image.Image:
    """In parallel projection, lit from one side, RGBA [SIDE, SIDE]."""
    texture = draw_surface(rng, surface, SIDE)
    canvas = Image.new("RGBA", (SIDE, SIDE))
    for corners, light in _FACES[name](rng):
        face = _shaded(texture, light)
        mask = _filled([(x * (SIDE - 2) + 1, y * (SIDE - 2) + 1) for x, y in corners])
        canvas.paste(face, mask=mask)
    return canvas


Faces = list[tuple[list[tuple[float, float]], NDArray[np.float64]]]


def _cube(rng: np.random.Generator) -> Faces:
    """Front, side and top, seen from above to the left or to the right."""
    d, e = rng.uniform(0.18, 0.34, 2)
    front = [(0, e), (1 - d, e), (1 - d, 1), (0, 1)]
    top = [(0, e), (d, 0), (1, 0), (1 - d, e)]
    side = [(1 - d, e), (1, 0), (1, 1 - e), (1 - d, 1)]
    lights = (rng.uniform(0.8, 0.92), 1.0, rng.uniform(0.55, 0.7))
    mirrored = rng.random() < 0.5
    return [
        ([(1 - x if mirrored else x, y) for x, y in face], np.full((2, 2), light))
        for face, light in zip((front, top, side), lights, strict=True)
    ]


def _ball(rng: np.random.Generator) -> Faces:
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    z = np.sqrt(np.maximum(0, 1 - x * x - y * y))
    a = rng.uniform(-0.9, 0.9)
    facing = (0.55 * np.sin(a) * x - 0.5 * y + 0.67 * z).clip(0, 1)
    corners = (_ngon(96) + 1) / 2
    return [([(float(u), float(v)) for u, v in corners], 0.45 + 0.58 * facing)]


def _cylinder(rng: np.random.Generator) -> Faces:
    half, lid = rng.uniform(0.25, 0.42), rng.uniform(0.06, 0.14)
    arc = _ngon(64, 0)
    top = [(0.5 + half * x, lid + lid * y) for x, y in arc]
    below = [(0.5 + half * x, 1 - lid + lid * y) for x, y in arc[:33]]
    body = [(0.5 + half, lid), *below, (0.5 - half, lid)]
    return [(body, _across(rng, half)), (top, np.ones((2, 2)))]


def _cone(rng: np.random.Generator) -> Faces:
    half, foot = rng.uniform(0.3, 0.46), rng.uniform(0.06, 0.13)
    below = [(0.5 + half * x, 1 - foot + foot * y) for x, y in _ngon(64, 0)[:33]]
    return [([(0.5, 0), *below], _across(rng, half))]


def _across(rng: np.random.Generator, half: float) -> NDArray[np.float64]:
    """Light [1, 40] around an upright round body of that half width."""
    x = ((np.linspace(0, 1, 40) - 0.5) / half).clip(-1, 1)
    towards = rng.uniform(-0.6, 0.6)
    return (0.5 + 0.5 * np.cos((x - towards) * 1.4))[None].clip(0.45, 1)


_FACES = {
    "cube": _cube,
    "ball": _ball,
    "cylinder": _cylinder,
    "cone": _cone,
}
