"""Bar and line charts with their values printed in digits, and the highest of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from printed import font, pick_font
from surfaces import shade

SIDE = 520
CHARTS = ("bar", "line")
_HUES = range(8)  # rows of COLOURS: those that are neither black, white nor grey
_LABELS = (
    "ABCDEF",
    "123456",
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6"),
    (),
)

Box = tuple[int, int, int, int]


def draw_chart(rng: np.random.Generator, *, held_out: bool) -> tuple[Image.Image, str, int, Box]:
    """The picture, one of CHARTS, the highest value (which only one has) and the box in pixels
    of its digits."""
    kind = CHARTS[rng.integers(2)]
    values = _values(rng, int(rng.integers(3, 7)))
    paper = (255, 255, 255) if rng.random() < 0.7 else tuple(rng.integers(225, 256, 3).tolist())
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(picture)
    face = font(pick_font(rng, held_out=held_out), int(rng.integers(26, 48)))
    left, right = rng.integers(20, 80), SIDE - rng.integers(12, 50)
    top, bottom = rng.integers(60, 120), SIDE - rng.integers(40, 80)
    scale = (bottom - top) / max(values)
    heights = [max(3.0, value * scale) for value in values]
    step = (right - left) / len(values)
    centres = [left + step * (i + 0.5) for i in range(len(values))]
    _draw_frame(rng, draw, face, (int(left), int(top), int(right), int(bottom)), centres)
    if kind == "bar":
        _draw_bars(rng, draw, centres, heights, step, bottom)
    else:
        _draw_line(rng, draw, centres, heights, bottom)
    only_highest = rng.random() < 0.25
    gap = int(rng.integers(4, 9)) + (8 if kind == "line" else 0)
    highest = (0, 0, 0, 0)
    for value, x, height in zip(values, centres, heights, strict=True):
        if value == max(values) or not only_highest:
            at = (x, bottom - height - gap)
            draw.text(at, str(value), (20, 20, 24), face, anchor="mb")
            if value == max(values):
                highest = tuple(int(v) for v in draw.textbbox(at, str(value), face, anchor="mb"))
    return picture, kind, max(values), highest


def _values(rng: np.random.Generator, count: int) -> list[int]:
    """Numbers of 1 to 100 of which one is the highest; small ones as often as large ones."""
    highest = int(rng.integers(count + 1, 101)) if rng.random() < 0.7 else int(rng.integers(3, 21))
    others = rng.integers(1, highest, count - 1).tolist()
    return [int(v) for v in rng.permutation([highest, *others])]


def _draw_frame(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    face: ImageFont.FreeTypeFont,
    plot: Box,
    centres: list[float],
) -> None:
    """Axes, grid lines and what is written below the marks, each or none."""
    left, top, right, bottom = plot
    ink = (40, 40, 45)
    if rng.random() < 0.5:
        for y in np.linspace(top, bottom, int(rng.integers(4, 8))):
            draw.line((left, y, right, y), (215, 215, 215), 1)
    if rng.random() < 0.8:
        draw.line((left, bottom, right, bottom), ink, 2)
        if rng.random() < 0.7:
            draw.line((left, top - 20, left, bottom), ink, 2)
    labels = _LABELS[rng.integers(len(_LABELS))]
    small = face.font_variant(size=int(min(24, SIDE - bottom - 14)))
    for x, label in zip(centres, labels, strict=False):
        draw.text((x, bottom + 6), label, ink, small, anchor="mt")


def _draw_bars(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    centres: list[float],
    heights: list[float],
    step: float,
    bottom: int,
) -> None:
    half = step * rng.uniform(0.25, 0.46)
    hues = rng.permutation(_HUES) if rng.random() < 0.6 else np.repeat(rng.choice(_HUES), 8)
    one = shade(rng, int(hues[0]))
    border = (30, 30, 30) if rng.random() < 0.25 else None
    for x, height, hue in zip(centres, heights, hues, strict=False):
        fill = one if hues[0] == hues[1] else shade(rng, int(hue))
        draw.rectangle((x - half, bottom - height, x + half, bottom), fill, border)


def _draw_line(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    centres: list[float],
    heights: list[float],
    bottom: int,
) -> None:
    colour = shade(rng, int(rng.choice(_HUES)))
    points = [(x, bottom - height) for x, height in zip(centres, heights, strict=True)]
    draw.line(points, colour, int(rng.integers(3, 8)), joint="curve")
    radius = rng.uniform(4, 9)
    if rng.random() < 0.8:
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
