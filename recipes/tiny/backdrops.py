"""What lies behind the things of a scene, or is all there is: plain colours, gradients, clouds,
textures, noise and photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from surfaces import MATERIAL_DRAWERS, blend, noise

SIDE = 520
_TEXTURE = 260  # drawn at half the size: they are no sharper in photographs

RGB = NDArray[np.uint8]


def plain(rng: np.random.Generator) -> Image.Image:
    """White as often as all other colours, of which half are pale."""
    if rng.random() < 0.5:
        return Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    return Image.new("RGB", (SIDE, SIDE), _rgb(_colour(rng)))


def gradient(rng: np.random.Generator) -> Image.Image:
    """Between two colours along a line or away from a point."""
    y, x = np.mgrid[-1:1:65j, -1:1:65j]
    if rng.random() < 0.7:
        angle = rng.uniform(0, 2 * np.pi)
        mix = 0.5 + 0.4 * (x * np.cos(angle) + y * np.sin(angle))
    else:
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        mix = np.hypot(x - cx, y - cy) / 1.5
    return _enlarged(blend(mix, _colour(rng), _colour(rng)))


def clouds(rng: np.random.Generator) -> Image.Image:
    """Two colours in soft patches."""
    cells = int(rng.integers(2, 9))
    mix = noise(rng, (130, 130), (cells, cells))
    if rng.random() < 0.5:
        mix = 0.65 * mix + 0.35 * noise(rng, (130, 130), (4 * cells, 4 * cells))
    return _enlarged(blend(mix, _colour(rng), _colour(rng)))


def texture(rng: np.random.Generator) -> Image.Image:
    """A material, paper, stripes or checks, of little contrast."""
    kind = rng.random()
    if kind < 0.45:
        draw = tuple(MATERIAL_DRAWERS.values())[rng.integers(len(MATERIAL_DRAWERS))]
        return _enlarged(draw(rng, _TEXTURE))
    base = _colour(rng)
    other = (base + rng.uniform(-45, 45)).clip(0, 255)
    if kind < 0.65:
        grain = noise(rng, (_TEXTURE, _TEXTURE), (_TEXTURE // 2, _TEXTURE // 2))
        return _enlarged(blend(grain, base, other))
    y, x = np.mgrid[0:_TEXTURE, 0:_TEXTURE] / _TEXTURE
    angle = rng.choice((0, np.pi / 2, np.pi / 4, rng.uniform(0, np.pi)))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    times = rng.uniform(4, 24)
    bands = (u * times % 1) < rng.uniform(0.1, 0.6)
    if kind > 0.85:
        bands ^= (v * times % 1) < 0.5
    return _enlarged(blend(bands.astype(float), base, other))


def static(rng: np.random.Generator) -> Image.Image:
    """Noise without any pattern, in colours or grey, of fine to coarse grain."""
    cells = int(np.exp(rng.uniform(np.log(8), np.log(SIDE))))
    channels = 3 if rng.random() < 0.6 else 1
    grain = rng.normal(rng.uniform(60, 190), rng.uniform(10, 80), (cells, cells, channels))
    image = Image.fromarray(np.repeat(grain, 3 // channels, 2).clip(0, 255).astype(np.uint8))
    filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    return image.resize((SIDE, SIDE), filters[rng.integers(3)])


def photograph(
    rng: np.random.Generator, rgb: RGB, shares: tuple[float, float] = (0.35, 1.0)
) -> Image.Image:
    """A crop of a photograph [h, w, 3] that has such a share of its sides, squashed and perhaps
    mirrored."""
    height, width = rgb.shape[:2]
    share = rng.uniform(*shares)
    w, h = (share * extent * rng.uniform(0.8, 1) for extent in (width, height))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    image = Image.fromarray(rgb).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h), reducing_gap=2.0
    )
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def blurred(rng: np.random.Generator, rgb: RGB, radii: tuple[float, float]) -> Image.Image:
    """A crop of a photograph blurred by a radius in pixels of the picture."""
    radius = float(np.exp(rng.uniform(np.log(radii[0]), np.log(radii[1]))))
    # Blurred small: it is the same, at a sixteenth of the work.
    small = photograph(rng, rgb).resize((SIDE // 4, SIDE // 4), reducing_gap=2.0)
    return _enlarged(small.filter(ImageFilter.GaussianBlur(radius / 4)))


def behind_things(
    rng: np.random.Generator, empty: Sequence[RGB], photographs: Sequence[RGB]
) -> Image.Image:
    """`empty` are photographs that show no thing, `photographs` any: these only blurred."""
    kind = rng.random()
    if kind < 0.2 and photographs:
        if kind < 0.1 and empty:
            return photograph(rng, empty[rng.integers(len(empty))])
        return blurred(rng, photographs[rng.integers(len(photographs))], (22, 60))
    drawer = rng.choice([plain, gradient, clouds, texture], p=(0.55, 0.15, 0.15, 0.15))
    picture: Image.Image = drawer(rng)
    return picture


def nothing(
    rng: np.random.Generator, empty: Sequence[RGB], photographs: Sequence[RGB]
) -> Image.Image:
    """A picture in which there is nothing to see."""
    kind = rng.random()
    if kind < 0.2 and photographs:
        return blurred(rng, photographs[rng.integers(len(photographs))], (35, 90))
    if kind < 0.27 and empty:
        return photograph(rng, empty[rng.integers(len(empty))], (0.06, 0.15))
    drawer = rng.choice(
        [plain, gradient, clouds, texture, static], p=(0.25, 0.18, 0.18, 0.21, 0.18)
    )
    picture: Image.Image = drawer(rng)
    return picture


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Any sRGB colour [3]; half of the time a pale one."""
    colour = rng.uniform(0, 255, 3)
    return colour if rng.random() < 0.5 else 255 - (255 - colour) * rng.uniform(0.05, 0.45)


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    r, g, b = colour.round().astype(int).tolist()
    return r, g, b


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
