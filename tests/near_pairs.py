"""Pairs of pictures: some that a camera or a JPEG encoder tells apart and nobody else, and some
in which a small thing has changed that a question could be about."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Rng = np.random.Generator
Pair = tuple[Pixels, Pixels]

_PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"
WIDTH, HEIGHT = 320, 240


def scene(rng: Rng) -> Pixels:
    """A part of a photograph, an even wall, or a slope of brightness, with things on it."""
    kind = int(rng.integers(3))
    if kind == 0:
        photo = Image.open(_PHOTO).convert("RGB")
        left = int(rng.integers(0, photo.width - WIDTH))
        top = int(rng.integers(0, photo.height - HEIGHT))
        base = photo.crop((left, top, left + WIDTH, top + HEIGHT))
    else:
        ends = rng.integers(30, 225, (2, 3)).astype(float)
        slope = np.linspace(0, float(kind - 1), WIDTH)[None, :, None]
        rows = (ends[0] + slope * (ends[1] - ends[0])).repeat(HEIGHT, axis=0)
        base = Image.fromarray(rows.astype(np.uint8))
    draw = ImageDraw.Draw(base)
    for _ in range(int(rng.integers(0, 6))):
        x, y, size = (int(rng.integers(*r)) for r in ((0, WIDTH), (0, HEIGHT), (6, 60)))
        draw.rectangle((x, y, x + size, y + size // 2), fill=colour(rng))
    return np.array(base)


def colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def camera(rng: Rng, pixels: Pixels, noise: float) -> Pixels:
    """The same scene a moment later: noise of so many grey levels, and a flicker."""
    values = pixels + rng.normal(0, noise, pixels.shape) + rng.uniform(-1, 1)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return np.array(Image.open(file))


def _at(rng: Rng, size: int) -> tuple[int, int]:
    return int(rng.integers(0, WIDTH - size)), int(rng.integers(0, HEIGHT - size))


def _shifted(rng: Rng, patch: Pixels, contrast: int) -> Pixels:
    """By `contrast` levels in one channel at least, up or down, wherever there is room."""
    up = patch.mean() < 128
    steps = rng.integers(0, contrast + 1, 3)
    steps[rng.integers(3)] = contrast
    moved = patch.astype(np.int16) + (steps if up else -steps)
    return np.clip(moved, 0, 255).astype(np.uint8)


def _patch(rng: Rng, pixels: Pixels, width: int, height: int, contrast: int) -> Pair:
    """One that is there in the second picture only, and told apart there: on a patch that is as
    bright as can be nothing could be seen, so the patch is made even first."""
    before = pixels.copy()
    x, y = _at(rng, max(width, height))
    area = (slice(y, y + height), slice(x, x + width))
    before[area] = np.clip(before[area].mean(axis=(0, 1)), 40, 215).astype(np.uint8)
    after = before.copy()
    after[area] = _shifted(rng, after[area], contrast)
    return before, after


def dot(rng: Rng, pixels: Pixels) -> Pair:
    """A dot of 3 to 8 pixels, 12 to 60 levels from what is around it: how many are there?"""
    side = int(rng.integers(3, 9))
    return _patch(rng, pixels, side, side, int(rng.integers(12, 61)))


def line(rng: Rng, pixels: Pixels) -> Pair:
    """A line of 2 pixels, 16 to 60 levels: is there a crack, a minus, a crossed-out word?"""
    length = int(rng.integers(8, 40))
    width, height = (2, length) if rng.integers(2) else (length, 2)
    return _patch(rng, pixels, width, height, int(rng.integers(16, 61)))


def shade(rng: Rng, pixels: Pixels) -> Pair:
    """A thing of 16 to 64 pixels in another shade, 4 to 20 levels apart: which is darker?"""
    width, height = (int(n) for n in rng.integers(16, 65, 2))
    return _patch(rng, pixels, width, height, int(rng.integers(4, 21)))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _written(pixels: Pixels, text: str, size: int, where: tuple[int, int], ink: int) -> Pixels:
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    font = _font(size)
    paper = 200
    draw.rectangle(draw.textbbox(where, "W" * len(text), font), fill=(paper,) * 3)
    draw.text(where, text, font=font, fill=(paper - ink,) * 3)
    return np.array(image)


def digit(rng: Rng, pixels: Pixels) -> Pair:
    """A number of which one digit is another one, 8 to 24 pixels high, faint or black."""
    digits = [str(d) for d in rng.integers(0, 10, int(rng.integers(1, 6)))]
    other = list(digits)
    place = int(rng.integers(len(digits)))
    other[place] = str((int(digits[place]) + int(rng.integers(1, 10))) % 10)
    size, ink = int(rng.integers(10, 30)), int(rng.integers(25, 200))
    x, y = _at(rng, 120)
    one, two = (_written(pixels, "".join(d), size, (x, y), ink) for d in (digits, other))
    return one, two


def word(rng: Rng, pixels: Pixels) -> Pair:
    """A sign that says the contrary."""
    signs = (("OPEN", "SHUT"), ("no dogs", "all dogs"), ("on", "off"), ("+5", "-5"), ("1.0", "10"))
    first, second = signs[int(rng.integers(len(signs)))]
    size, ink = int(rng.integers(10, 30)), int(rng.integers(25, 200))
    where = _at(rng, 120)
    return _written(pixels, first, size, where, ink), _written(pixels, second, size, where, ink)


def moved(rng: Rng, pixels: Pixels) -> Pair:
    """A thing that is 2 pixels or more from where it was: do they touch? which is left?"""
    side, step = int(rng.integers(4, 30)), int(rng.integers(2, 12))
    x, y = _at(rng, 60)
    fill = colour(rng)
    pair = []
    for dx in (0, step):
        image = Image.fromarray(pixels)
        draw = ImageDraw.Draw(image)
        draw.rectangle((x, y, x + 59, y + 59), fill=tuple((c + 128) % 256 for c in fill))
        draw.ellipse((x + dx, y + 8, x + dx + side, y + 8 + side), fill=fill)
        pair.append(np.array(image))
    return pair[0], pair[1]


def swapped(rng: Rng, pixels: Pixels) -> Pair:
    """Two things have changed places, so that all sums are the same."""
    side, contrast = int(rng.integers(4, 20)), int(rng.integers(12, 80))
    base, with_left = _patch(rng, pixels, side, side, contrast)
    changed = np.argwhere((base != with_left).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
    over = (slice(top, bottom), slice(left, right))
    x = (int(left) + WIDTH // 2) % (WIDTH - side)
    there = (over[0], slice(x, x + int(right - left)))
    one, two = base.copy(), base.copy()
    two[there] = one[over]
    one[there], one[over] = base[over], with_left[over]
    two[there], two[over] = with_left[over], base[over]
    return one, two


CHANGES: Mapping[str, Callable[[Rng, Pixels], Pair]] = {
    "dot": dot,
    "line": line,
    "shade": shade,
    "digit": digit,
    "word": word,
    "moved": moved,
    "swapped": swapped,
}


def changed_pair(rng: Rng, kind: str) -> Pair:
    """A pair whose second picture is also taken by a camera or saved again, as a cache gets it."""
    before, after = CHANGES[kind](rng, scene(rng))
    how = int(rng.integers(4))
    if how == 1:
        after = camera(rng, after, float(rng.uniform(0.5, 2)))
    elif how == 2:
        after = jpeg(after, int(rng.integers(85, 99)))
    elif how == 3:  # a noise that hides as much as it can: the opposite flicker
        after = camera(rng, after, 0.5)
    return before, after


HARMLESS: Mapping[str, Callable[[Rng, Pixels], Pixels]] = {
    "the same": lambda rng, pixels: pixels.copy(),
    "noise of 1 level": lambda rng, pixels: camera(rng, pixels, 1.0),
    "noise of 2 levels": lambda rng, pixels: camera(rng, pixels, 2.0),
    "noise of 3 levels": lambda rng, pixels: camera(rng, pixels, 3.0),
    "JPEG, quality 98": lambda rng, pixels: jpeg(pixels, 98),
    "JPEG, quality 95": lambda rng, pixels: jpeg(pixels, 95),
    "JPEG, quality 90": lambda rng, pixels: jpeg(pixels, 90),
}
