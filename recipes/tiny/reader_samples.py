"""Made-up words for the reader, cut out of their pictures as the locator cuts them.

Words are rendered once to masks and then coloured, tilted, shifted, blurred and laid over
grounds by torch, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from printed import font, pick_font
from reader_net import (
    ALPHABET,
    BLANK,
    COLUMNS,
    CROP_HEIGHT,
    CROP_WIDTH,
    LEAST_WIDTH,
    LETTERS,
    MARGIN_X,
    MARGIN_Y,
)
from torch import Tensor
from torch.nn import functional

MASK_HEIGHT, MASK_WIDTH = 40, 200


@dataclass(frozen=True, slots=True)
class Masks:
    """Words in white on black, stretched to fill; n of them.

    ink [n, 40, 200] uint8; aspects [n], width by height before the stretch; letters [n, 8], of
    ALPHABET or BLANK; ends [n, 9]: where letters begin and the last ends, shares of the width,
    2 for letters that aren't there.
    """

    ink: Tensor
    aspects: Tensor
    letters: Tensor
    ends: Tensor


def render(words: Sequence[str], rng: np.random.Generator, *, held_out: bool = False) -> Masks:
    n = len(words)
    ink = np.zeros((n, MASK_HEIGHT, MASK_WIDTH), np.uint8)
    aspects = np.zeros(n, np.float32)
    letters = np.full((n, LETTERS), BLANK)
    ends = np.full((n, LETTERS + 1), 2, np.float32)
    for i, word in enumerate(words):
        path = pick_font(rng, held_out=held_out)
        # Small letters are rendered small, as they meet the reader.
        size = int(rng.choice([18, 22, 27, 33, 40, 48]))
        face = font(path, size)
        written = (str.lower, str.capitalize, str.upper)[rng.integers(3)](word)
        spacing = rng.choice([0, 0, 0, 0.1, 0.25]) * size
        lefts = [face.getlength(written[:k]) + k * spacing for k in range(len(written) + 1)]
        canvas = Image.new("L", (int(lefts[-1]) + 2 * size, 2 * size))
        draw = ImageDraw.Draw(canvas)
        if spacing:
            for letter, left in zip(written, lefts, strict=False):
                draw.text((size + left, size // 3), letter, 255, face)
        else:
            draw.text((size, size // 3), written, 255, face)
        box = canvas.getbbox()
        if box is None:
            raise ValueError(f"{path} draws nothing for {written}")
        x0, y0, x1, y1 = box
        resized = canvas.resize((MASK_WIDTH, MASK_HEIGHT), Image.Resampling.BILINEAR, box)
        ink[i] = np.asarray(resized)
        aspects[i] = (x1 - x0) / (y1 - y0)
        letters[i, : len(word)] = [ALPHABET.index(c) for c in word.lower()]
        shares = (np.array(lefts) + size - x0) / (x1 - x0)
        shares[0], shares[-1] = 0, 1
        ends[i, : len(shares)] = shares
    return Masks(*(torch.from_numpy(v) for v in (ink, aspects, letters, ends)))


def draw_words(names: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Words, numbers of 0 to 100, and letters in no order, so that not only words are read."""
    words = []
    for _ in range(n):
        kind = rng.random()
        if kind < 0.7:
            words.append(names[rng.integers(len(names))])
        elif kind < 0.85:
            words.append(str(rng.integers(101)))
        else:
            letters = rng.choice(list(ALPHABET[:26]), rng.integers(3, 9))
            words.append("".join(letters))
    return words


def between(low: float, high: float, shape: list[int], rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def textures(n: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Made-up grounds [n, 3, height, width] of 0..1: clouds of several sizes, in some of them
    hard edges instead, bars and speckles."""
    out = between(0, 1, [n, 3, 1, 1], rng).expand(n, 3, height, width)
    for cells in (2, 5, 12, 30):
        shape = [n, 3, max(2, cells * height // width), cells]
        cloud = torch.randn(shape, generator=rng)
        cloud = functional.interpolate(cloud, (height, width), mode="bilinear")
        hard = torch.rand([n, 1, 1, 1], generator=rng) < 0.3
        cloud = torch.where(hard, cloud.sign(), cloud)
        amount = between(-0.25, 0.25, [n, 1, 1, 1], rng).clamp(min=0)
        out = out + amount * cloud
    x, y = torch.arange(width) / width, torch.arange(height)[:, None] / height
    for _ in range(2):
        angle, at = between(0, 6.3, [n, 1, 1, 1], rng), between(-1, 1, [n, 1, 1, 1], rng)
        along = angle.cos() * x * width / height + angle.sin() * y - at * width / height
        bar = (along.abs() < between(-0.5, 0.5, [n, 1, 1, 1], rng)).float()
        out = out + bar * between(-0.7, 0.7, [n, 3, 1, 1], rng)
    return out.clamp(0, 1)


def grounds(n: int, height: int, width: int, stills: Tensor | None, rng: torch.Generator) -> Tensor:
    """Plain, made up, or out of `stills` [m, 3, h, w] uint8: [n, 3, height, width] of 0..1."""
    out = between(0, 1, [n, 3, 1, 1], rng).expand(n, 3, height, width).clone()
    kind = torch.rand([n], generator=rng)
    taken = kind > (0.7 if stills is not None else 1)
    made = (kind > 0.4) & ~taken
    out[made] = textures(int(made.sum()), height, width, rng)
    if stills is not None:
        rows = torch.randint(len(stills), [int(taken.sum())], generator=rng)
        up = int(torch.randint(stills.shape[2] - height + 1, [1], generator=rng))
        left = int(torch.randint(stills.shape[3] - width + 1, [1], generator=rng))
        out[taken] = stills[rows, :, up : up + height, left : left + width].float() / 255
    return out


def overlay(ground: Tensor, mask: Tensor, rng: torch.Generator) -> Tensor:
    """Ink of a colour that stands out, at times outlined or blurred, on the ground."""
    n = len(ground)
    under = (ground * mask).sum((2, 3)) / (mask.sum((2, 3)) + 1e-3)
    # The most contrasting of a few colours.
    tries = torch.rand([6, n, 3], generator=rng)
    tries[0], tries[1] = 0, 1
    light = torch.tensor([0.3, 0.6, 0.1])
    contrast = ((tries - under) @ light).abs() + between(0, 0.4, [6, n], rng)
    ink = tries[contrast.argmax(0), torch.arange(n)][..., None, None]
    outlined = torch.rand([n], generator=rng) < 0.2
    wide = functional.max_pool2d(mask[outlined], 3, 1, 1)
    rim = torch.where(ink[outlined].mean(1, keepdim=True) > 0.5, 0.0, 1.0)
    out = ground.clone()
    out[outlined] += wide * (rim - ground[outlined])
    return out + mask * (ink - out)


def cut_outs(
    masks: Masks,
    rows: Tensor,
    stills: Tensor | None,
    rng: torch.Generator,
    empty: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Words as the locator would cut them out [n, 3, 32, 160], and which letter each of the 40
    columns is part of [n, 40], 0 for none. Where `empty` [n] there is only the ground."""
    n = len(rows)
    aspect = masks.aspects[rows].clamp(min=0.2)
    # Half sizes of the ink in the crop, and how the locator errs.
    height = 1 / MARGIN_Y * torch.exp(0.10 * torch.randn(n, generator=rng))
    width = torch.minimum(torch.tensor(1 / MARGIN_X), aspect / (LEAST_WIDTH * MARGIN_Y))
    width = width * torch.exp(0.06 * torch.randn(n, generator=rng))
    x = 0.04 * torch.randn(n, generator=rng)
    y = 0.12 * torch.randn(n, generator=rng)
    tilt = 0.12 * torch.randn(n, generator=rng)  # of half a crop's height to half its width
    lean = 0.02 * torch.randn(n, generator=rng)
    forward = torch.stack(
        [torch.stack([width, lean, x], 1), torch.stack([tilt * width, height, y], 1)], 1
    )
    square = torch.cat([forward, torch.tensor([[[0.0, 0, 1]]]).expand(n, 1, 3)], 1)
    grid = functional.affine_grid(
        torch.linalg.inv(square)[:, :2], [n, 1, CROP_HEIGHT, CROP_WIDTH], align_corners=False
    )
    ink = masks.ink[rows, None].float() / 255
    mask = functional.grid_sample(ink, grid, align_corners=False)
    blurred = functional.avg_pool2d(mask, 3, 1, 1, count_include_pad=False)
    mask = torch.lerp(mask, blurred, between(0, 1, [n, 1, 1, 1], rng) ** 2)
    if empty is not None:
        mask = torch.where(empty[:, None, None, None], 0.0, mask)
    ground = grounds(n, CROP_HEIGHT, CROP_WIDTH, stills, rng)
    crops = overlay(ground, mask, rng)
    crops = crops + between(0, 0.06, [n, 1, 1, 1], rng) * torch.randn(crops.shape, generator=rng)
    return crops, ranks_of(masks.ends[rows], x, width)


def ranks_of(ends: Tensor, x: Tensor, width: Tensor) -> Tensor:
    """Which letter each column of a crop is part of [n, 40], 0 for none, where the word is in
    the middle at `x` [n] and of half width `width` [n], in half crops, and ends as in Masks."""
    at = (torch.arange(COLUMNS) + 0.5) / COLUMNS * 2 - 1
    share = ((at - x[:, None]) / width[:, None] + 1) / 2
    passed = (share[:, :, None] >= ends[:, None]).sum(2)
    return torch.where(passed > (ends <= 1).sum(1, keepdim=True) - 1, 0, passed)
