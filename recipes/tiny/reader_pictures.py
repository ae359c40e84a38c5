"""Made-up whole pictures for the reader: words somewhere, charts, and pictures without print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from charts import draw_chart
from numpy.typing import NDArray
from PIL import Image
from printed import draw_word, load_words
from reader_net import (
    ALPHABET,
    BLANK,
    FIELDS,
    LEAST_WIDTH,
    LETTERS,
    MARGIN_X,
    MARGIN_Y,
    PICTURE,
    SHRUNK,
    crop,
)
from reader_samples import between, draw_words, grounds, overlay, ranks_of
from scenes import Scenes
from torch import Tensor
from torch.nn import functional


def draw_stills(scenes: Scenes, sorts: Sequence[str], n: int, rng: np.random.Generator) -> Tensor:
    """Pictures of some sorts in turn, at half their size [n, 3, 260, 260] uint8."""
    drawn = (scenes.draw(rng, sorts[i % len(sorts)]).pixels for i in range(n))
    reduced = (np.array(Image.fromarray(pixels).reduce(2)) for pixels in drawn)
    return torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in reduced])


@dataclass(frozen=True, slots=True)
class Charts:
    """pixels [n, 3, 520, 520] uint8, and of the highest value: how it lies [n, 5], its letters
    [n, 8] and where they end [n, 9] as in Masks."""

    pixels: Tensor
    lies: Tensor
    letters: Tensor
    ends: Tensor


def draw_charts(n: int, rng: np.random.Generator) -> Charts:
    pixels = np.zeros((n, 3, PICTURE, PICTURE), np.uint8)
    lies = np.zeros((n, FIELDS), np.float32)
    letters = np.full((n, LETTERS), BLANK)
    ends = np.full((n, LETTERS + 1), 2, np.float32)
    for i in range(n):
        picture, _, highest, (x0, y0, x1, y1) = draw_chart(rng, held_out=False)
        pixels[i] = np.asarray(picture).transpose(2, 0, 1)
        middle = (x0 + x1) / PICTURE - 1, (y0 + y1) / PICTURE - 1
        lies[i] = *middle, np.log((x1 - x0) / PICTURE), 0, np.log((y1 - y0) / PICTURE)
        digits = str(highest)
        letters[i, : len(digits)] = [ALPHABET.index(c) for c in digits]
        # Digits are of one width.
        ends[i, : len(digits) + 1] = np.linspace(0, 1, len(digits) + 1)
    return Charts(*(torch.from_numpy(v) for v in (pixels, lies, letters, ends)))


def chart_cut_outs(charts: Charts, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The highest values as the locator would cut them out, and which letter each column is part
    of, as of `cut_outs`."""
    n = len(rows)
    x, y, width, slope, height = charts.lies[rows].unbind(1)
    down = height.exp() * torch.exp(0.12 * torch.randn(n, generator=rng))
    across = width.exp() * torch.exp(0.06 * torch.randn(n, generator=rng))
    right = 0.1 * height.exp() * torch.randn(n, generator=rng)
    below = 0.1 * height.exp() * torch.randn(n, generator=rng)
    slope = slope + 0.02 * torch.randn(n, generator=rng)
    lies = torch.stack([x + right, y + below, across.log(), slope, down.log()], 1)
    crops = crop(charts.pixels[rows].float() / 255, lies)
    half = torch.maximum(MARGIN_X * across, LEAST_WIDTH * MARGIN_Y * down)
    return crops, ranks_of(charts.ends[rows], -right / half, width.exp() / half)


def lie_of(ink: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How a word lies in a square picture [side, side], as `crop` wants it: the lowest strip of
    moderate slope that holds the ink."""
    side = len(ink)
    solid = ink > 100
    columns = np.flatnonzero(solid.any(0))
    top, bottom = (rows[columns] for rows in (solid.argmax(0), side - solid[::-1].argmax(0)))
    x = np.concatenate([columns, columns + 1, columns, columns + 1]) / side * 2 - 1
    y = np.concatenate([top, top, bottom, bottom]) / side * 2 - 1
    slope = np.linspace(-0.24, 0.24, 33)[:, None]
    across, down = ((u / (1 + slope**2)) for u in (x + slope * y, y - slope * x))
    best = int(np.argmin(np.ptp(down, 1) * (1 + 0.5 * np.abs(slope[:, 0]))))
    s, a, d = float(slope[best, 0]), across[best], down[best]
    middle = (a.max() + a.min()) / 2, (d.max() + d.min()) / 2
    centre = middle[0] - s * middle[1], s * middle[0] + middle[1]
    return np.array([*centre, np.log(np.ptp(a) / 2), s, np.log(np.ptp(d) / 2)], np.float32)


def pictures(
    n: int, stills: Tensor | None, rng: np.random.Generator, torch_rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures as the locator sees them [n, 3, 130, 130], half of them with a word somewhere and
    a quarter charts; how it or the highest value lies [n, 5], and whether there is one [n]."""
    # Drawn at twice the size, for letters look otherwise when they are drawn small.
    side = 2 * PICTURE // SHRUNK
    ink = np.zeros((n, 1, side, side), np.uint8)
    plates = np.zeros((n, 1, side, side), np.uint8)
    fields = np.zeros((n, FIELDS), np.float32)
    kinds = rng.choice(3, n, p=(0.25, 0.5, 0.25))  # without print, with a word, charts
    words = load_words()
    for i in np.flatnonzero(kinds == 1):
        word = draw_words(words, 1, rng)[0]
        word_mask = draw_word(
            rng,
            word,
            held_out=False,
            width=int(side * np.exp(rng.uniform(np.log(0.2), np.log(0.97)))),
            height=int(side * rng.uniform(0.12, 0.6)),
            aspect=float(np.exp(rng.uniform(-0.3, 0.5))),
        )
        word_mask.thumbnail((side - 4, side - 4))
        x, y = (int(rng.integers(0, side - extent + 1)) for extent in word_mask.size)
        bottom, right = y + word_mask.height, x + word_mask.width
        ink[i, 0, y:bottom, x:right] = np.asarray(word_mask)
        fields[i] = lie_of(ink[i, 0])
        if rng.random() < 0.3:
            margin = 2 + int(word_mask.height * rng.uniform(0.1, 0.5))
            top, left = max(0, y - margin), max(0, x - margin)
            plates[i, 0, top : bottom + margin, left : right + margin] = 255
    mask, plate = (
        functional.avg_pool2d(torch.from_numpy(drawn).float() / 255, 2) for drawn in (ink, plates)
    )
    ground = grounds(n, side // 2, side // 2, stills, torch_rng)
    ground = ground + plate * (between(0, 1, [n, 3, 1, 1], torch_rng) - ground)
    out = overlay(ground, mask, torch_rng)
    is_chart = torch.from_numpy(kinds == 2)
    charts = draw_charts(int(is_chart.sum()), rng)
    out[is_chart] = functional.avg_pool2d(charts.pixels.float() / 255, SHRUNK)
    lies = torch.from_numpy(fields)
    lies[is_chart] = charts.lies
    out = _coarsened(out, torch_rng)
    noise = between(-0.05, 0.05, [n, 1, 1, 1], torch_rng).clamp(min=0)
    out = out + noise * torch.randn(out.shape, generator=torch_rng)
    return out, lies, torch.from_numpy(kinds != 0)


def _coarsened(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """A fifth of the pictures as if they had been smaller."""
    some = torch.rand([len(pixels)], generator=rng) < 0.2
    side = int(torch.randint(55, 120, [1], generator=rng))
    small = functional.interpolate(pixels[some], (side, side), mode="bilinear", antialias=True)
    pixels[some] = functional.interpolate(small, pixels.shape[2:], mode="bilinear")
    return pixels
