"""Glimpses of single cutouts on all kinds of ground, as the detector would hand them over.

Each is one picture of one thing: mirrored, turned and tinted a little, as coarse as a small
thing in a large picture would be, not quite in the middle, sometimes beside parts of others.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from features import GLIMPSE
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

Pixels = NDArray[np.uint8]


def draw_view(
    rng: np.random.Generator,
    rgba: Pixels,
    others: Sequence[Pixels],
    grounds: Sequence[Pixels],
    tinted: bool = True,
) -> Pixels:
    """A glimpse [160, 160, 3] of `rgba` [h, w, 4], beside parts of `others` [h, w, 4]; `grounds`
    are photographs [h, w, 3] at least as large as a glimpse. Not `tinted`, it keeps its colours."""
    view = _ground(rng, grounds)
    if rng.random() < 0.2:
        side = GLIMPSE * rng.uniform(0.4, 1.0)
        angle = rng.uniform(0, 2 * np.pi)
        off = rng.uniform(0.75, 0.95) * GLIMPSE / 2 + side / 2 - 0.15 * GLIMPSE
        centre = GLIMPSE / 2 + off * np.array([np.cos(angle), np.sin(angle)])
        other = others[rng.integers(len(others))]
        _paste(view, _scaled(_image(rng, other), side), centre)
    # Most as the detector's square has them, some smaller: the whole picture is such a view too.
    share = rng.uniform(0.7, 1.0) if rng.random() < 0.75 else rng.uniform(0.3, 0.7)
    thing = _scaled(_image(rng, rgba, tinted), share * GLIMPSE)
    slack = max(0.5 * (1 - share), 0.06) * GLIMPSE
    _paste(view, thing, GLIMPSE / 2 + rng.uniform(-slack, slack, 2))
    return np.asarray(_worn(rng, view))


def _image(rng: np.random.Generator, rgba: Pixels, tinted: bool = True) -> Image.Image:
    """The cutout with its own colours changed a little."""
    image = Image.fromarray(rgba)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if tinted and rng.random() < 0.5:
        alpha = image.getchannel("A")
        colours = image.convert("RGB")
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            colours = enhance(colours).enhance(rng.uniform(0.7, 1.3))
        image = colours.convert("RGBA")
        image.putalpha(alpha)
    if rng.random() < 0.35:
        angle = rng.uniform(-20, 20)
        image = image.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        image = image.crop(image.getchannel("A").getbbox())
    return image


def _scaled(image: Image.Image, longest: float) -> Image.Image:
    stretch = longest / max(image.size)
    size = tuple(max(round(side * stretch), 4) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC)


def _paste(view: Image.Image, thing: Image.Image, centre: NDArray[np.float64]) -> None:
    x, y = (round(c - side / 2) for c, side in zip(centre, thing.size, strict=True))
    view.paste(thing, (x, y), thing)


def _ground(rng: np.random.Generator, grounds: Sequence[Pixels]) -> Image.Image:
    kind = rng.random()
    if kind < 0.3:
        return _plain((255, 255, 255))
    if kind < 0.45:
        return _plain(tuple(rng.integers(200, 256, 3)))
    if kind < 0.6:
        return _plain(tuple(rng.integers(0, 256, 3)))
    if kind < 0.75:
        corners = Image.fromarray(rng.integers(60, 256, (2, 2, 3), dtype=np.uint8))
        return corners.resize((GLIMPSE, GLIMPSE), Image.Resampling.BICUBIC)
    if kind < 0.82:
        coarse = rng.integers(0, 256, (1, 1, 3)) + rng.normal(
            0, 25, (*[rng.integers(4, 81)] * 2, 3)
        )
        noise = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        return noise.resize((GLIMPSE, GLIMPSE), Image.Resampling.BICUBIC)
    ground = grounds[rng.integers(len(grounds))]
    side = int(rng.integers(GLIMPSE // 2, min(ground.shape[:2]) + 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in ground.shape[:2])
    part = Image.fromarray(ground[y : y + side, x : x + side])
    return part.resize((GLIMPSE, GLIMPSE), Image.Resampling.BILINEAR)


def _plain(colour: tuple[int, ...]) -> Image.Image:
    return Image.new("RGB", (GLIMPSE, GLIMPSE), tuple(int(c) for c in colour))


def _worn(rng: np.random.Generator, view: Image.Image) -> Image.Image:
    """What small sizes and JPEG leave of it."""
    if rng.random() < 0.5:
        side = int(GLIMPSE * rng.uniform(0.2, 0.8))
        how = Image.Resampling(int(rng.choice([0, 2, 3], p=[0.2, 0.4, 0.4])))
        view = view.resize((side, side), Image.Resampling.BOX).resize((GLIMPSE, GLIMPSE), how)
    if rng.random() < 0.2:
        file = io.BytesIO()
        view.save(file, "jpeg", quality=int(rng.integers(30, 90)))
        view = Image.open(file)
    return view
