"""Reads one printed word or number, anywhere in a picture: the networks.

A locator looks at the picture at a quarter of its size and says, for each of 17 x 17 cells, how
surely the text is there and how it lies. The likeliest text is cut out, set straight and
stretched to 32 x 160 pixels. A recogniser turns that into 40 columns; each column says which
letter of the word it belongs to, the columns of a letter are averaged, and the average says which
letter it is. The word is the likeliest of a lexicon given eight letters; letters past the end are
blank. Of a chart, the locator finds the number over the highest mark.

Both networks are rows of `Layer`s, which torch trains and reader.py writes down alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

PICTURE = 520
SHRUNK = 4  # times smaller is the picture that the locator sees
CELLS = 17
CROP_HEIGHT, CROP_WIDTH, COLUMNS = 32, 160, 40
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
BLANK = len(ALPHABET)
LETTERS = 8
# The crop is larger than the ink, and never narrower than this many times its height: a lone
# digit stays a digit.
MARGIN_X, MARGIN_Y, LEAST_WIDTH = 1.24, 1.35, 2.5
# Columns count as members of a letter from about this many on; letters past the end have none.
MASS_FLOOR = 0.2
EPSILON = 1e-5
# Keeps the odds finite of a word that leaves nothing to the others.
SHARE_FLOOR = 1e-4
# x, y of the centre, log of half the width, slope, log of half the height; -1..1 is the picture.
FIELDS = 5


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution, batch normalisation, ReLU; `skip` adds the input. Pairs are height, width."""

    channels_in: int
    channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    skip: bool = False


def _dilated(channels: int, by: int) -> Layer:
    return Layer(channels, channels, padding=(by, by), dilation=(by, by), skip=True)


def _along(channels: int, by: int) -> Layer:
    return Layer(channels, channels, (1, 5), (1, 1), (0, 2 * by), (1, by), skip=True)


LOCATOR = (
    Layer(3, 24, (5, 5), (2, 2), (2, 2)),  # 130 -> 65
    Layer(24, 32, stride=(2, 2)),  # -> 33
    Layer(32, 64, stride=(2, 2)),  # -> 17
    *(_dilated(64, by) for by in (1, 2, 4, 1)),
)
RECOGNISER = (
    Layer(3, 16, stride=(2, 2)),  # 32 x 160 -> 16 x 80
    Layer(16, 32, stride=(2, 2)),  # -> 8 x 40
    Layer(32, 64),
    Layer(64, 96, stride=(2, 1)),  # -> 4 x 40
    Layer(96, 128, (4, 3), padding=(0, 1)),  # -> 1 x 40
    *(_along(128, by) for by in (1, 3, 5)),
)


class Stack(nn.Module):
    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = layers
        self.convs = nn.ModuleList(
            nn.Conv2d(
                layer.channels_in,
                layer.channels,
                layer.kernel,
                layer.stride,
                layer.padding,
                layer.dilation,
                bias=False,
            )
            for layer in layers
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.channels, EPSILON) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer, conv, norm in zip(self.layers, self.convs, self.norms, strict=True):
            y = functional.relu(norm(conv(x)))
            x = x + y if layer.skip else y
        return x


class Locator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack(LOCATOR)
        self.head = nn.Conv2d(LOCATOR[-1].channels, 1 + FIELDS, 1)
        self.register_buffer("places", torch.from_numpy(cell_places()), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [n, 3, 130, 130] to heat [n, 289] and fields [n, 5, 289]. The softmax of the
        heat, with a 0 for "nowhere", is where the text is."""
        out = self.head(self.stack(normalised(pixels))).flatten(2)
        return out[:, 0], out[:, 1:] + self.places


class Recogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        channels = RECOGNISER[-1].channels
        self.stack = Stack(RECOGNISER)
        self.ranks = nn.Conv1d(channels, 1 + LETTERS, 1)
        self.rank_bias = nn.Parameter(torch.zeros(1 + LETTERS, COLUMNS))
        self.letters = nn.Linear(channels, BLANK + 1)
        self.presence = nn.Linear(channels, 1)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops [n, 3, 32, 160] to letter logits [n, 8, 37], to which letter each column belongs
        as logits [n, 9, 40] (the first is none), and the logit that this is text [n]."""
        columns = self.stack(normalised(crops)).squeeze(2)
        ranks = self.ranks(columns) + self.rank_bias
        members = ranks.softmax(1)[:, 1:]
        pooled = members @ columns.transpose(1, 2)
        pooled = pooled / (members.sum(2, keepdim=True) + MASS_FLOOR)
        return self.letters(pooled), ranks, self.presence(columns.mean(2)).squeeze(1)


def normalised(pixels: Tensor) -> Tensor:
    """Each colour's mean taken away, then all divided by what deviation is left."""
    centred = pixels - pixels.mean((2, 3), keepdim=True)
    return centred / ((centred * centred).mean((1, 2, 3), keepdim=True) + EPSILON).sqrt()


def crop(pixels: Tensor, fields: Tensor) -> Tensor:
    """Cut texts that lie as `fields` [n, 5] out of pixels [n, 3, h, w]: [n, 3, 32, 160]."""
    x, y, width, slope, height = fields.unbind(1)
    height = height.exp()
    across = torch.maximum(MARGIN_X * width.exp(), LEAST_WIDTH * MARGIN_Y * height)
    down = MARGIN_Y * height
    centre, right, below = (
        torch.stack(pair, 1)[:, None, None]
        for pair in ((x, y), (across, slope * across), (-slope * down, down))
    )
    a, b = (torch.from_numpy(v) for v in crop_axes())
    # Twice as many samples, averaged: large letters are not torn.
    fine = functional.grid_sample(
        pixels, centre + a * right + b * below, padding_mode="border", align_corners=False
    )
    return functional.avg_pool2d(fine, 2)


def lexicon_ids(words: Sequence[str]) -> NDArray[np.uint8]:
    """For each letter of each word its place among all letters' scores, less 37 k: [8, W]."""
    rows = [[ALPHABET.index(c) for c in w] + [BLANK] * (LETTERS - len(w)) for w in words]
    return np.array(rows, np.uint8).T.copy()


def word_scores(letters: Tensor, ids: NDArray[np.uint8]) -> Tensor:
    """Letter logits [n, 8, 37] to log-likelihoods of the words [n, W]."""
    logs = letters.log_softmax(2)
    rows = torch.from_numpy(ids.astype(np.int64))
    return torch.stack([logs[:, k, rows[k]] for k in range(LETTERS)]).sum(0)


class Reader(nn.Module):
    """Both networks, and the calibration that turns what they find into probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.locator = Locator()
        self.recogniser = Recogniser()
        self.register_buffer("presence", torch.tensor([0.5, 0.5, 0.0]))
        self.register_buffer("certainty", torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))

    def find(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [n, 3, 520, 520] to the logit that there is text [n] and how it lies [n, 5]."""
        heat, fields = self.locator(functional.avg_pool2d(pixels, SHRUNK))
        return heat.logsumexp(1), fields[torch.arange(len(heat)), :, heat.argmax(1)]

    def weigh(self, pixels: Tensor, ids: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """The likeliest word [n], and what the calibration weighs [n, 5]: whether there is text
        as each network has it, how far the word is ahead of all others, how well it fits, 1."""
        found, fields = self.find(pixels)
        letters, _, text = self.recogniser(crop(pixels, fields))
        scores = word_scores(letters, ids)
        fit, row = scores.max(1)
        share = scores.softmax(1).amax(1)
        ahead = (share / (1 - share + SHARE_FLOOR)).log()
        return row, torch.stack([found, text, ahead, fit, torch.ones_like(fit)], 1)

    def forward(self, pixels: Tensor, ids: NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
        """The logit that there is text [n], the likeliest word [n] and its probability [n]."""
        row, weighed = self.weigh(pixels, ids)
        presence = weighed[:, [0, 1, 4]] @ self.presence
        return presence, row, (weighed @ self.certainty).sigmoid()


def cell_places() -> NDArray[np.float32]:
    """What each cell's fields are counted from: its centre, a usual size, no slope [1, 5, 289]."""
    at = ((np.arange(CELLS) + 0.5) / CELLS * 2 - 1).astype(np.float32)
    y, x = np.meshgrid(at, at, indexing="ij")
    zero = np.zeros_like(x)
    return np.stack([x, y, zero - 1.2, zero, zero - 2.7]).reshape(1, FIELDS, -1)


def crop_axes() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the samples of a crop lie, -1..1, across [1, 1, 320, 1] and down [1, 64, 1, 1]."""
    across, down = (
        ((np.arange(2 * n) + 0.5) / n - 1).astype(np.float32) for n in (CROP_WIDTH, CROP_HEIGHT)
    )
    return across[None, None, :, None], down[None, :, None, None]
