"""Teaching the tail to name drawings: the encoder's last blocks, on glimpses of cutouts.

The early blocks are frozen, so what they make of every glimpse is worked out once and kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from classifier import Array
from drawn_views import Pixels, draw_view
from features import MIDDLE_SIDE, Extractor, normalised
from heads import FEATURES, Tail
from numpy.typing import NDArray
from shapes import draw_shape
from torch import nn
from torch.nn import functional

BATCH = 64
CHUNK = 16
# Of the tail, and of the new last layer.
TAIL_RATE, LAST_RATE, DECAY = 3e-4, 2e-3, 0.02
SMOOTHING, DROPOUT = 0.1, 0.2
# Of what is drawn, where there are cutouts too.
SHAPE_SHARE = 0.04


@dataclass(frozen=True, slots=True)
class Drawings:
    """What is named: cutouts [h, w, 4] of `concepts`, and shapes by name, with their concepts."""

    cutouts: Sequence[Pixels]
    concepts: NDArray[np.int64]
    shapes: Sequence[tuple[str, int]]

    def shares(self) -> NDArray[np.float64]:
        """How often each cutout, then each shape, is drawn: a concept with four times the
        cutouts is drawn twice as often."""
        counts = np.bincount(self.concepts)
        cutouts = counts[self.concepts] ** -0.5
        shapes = np.ones(len(self.shapes))
        if len(cutouts):
            cutouts *= (1 - SHAPE_SHARE) / cutouts.sum()
            shapes *= SHAPE_SHARE / len(shapes)
        shares = np.concatenate([cutouts, shapes])
        return shares / shares.sum()

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Pixels, int]:
        if index < len(self.cutouts):
            return self.cutouts[index], int(self.concepts[index])
        name, concept = self.shapes[index - len(self.cutouts)]
        return draw_shape(rng, name)[0], concept


def make_views(
    extractor: Extractor,
    drawings: Drawings,
    grounds: Sequence[Pixels],
    count: int,
    seed: int,
    target: Path,
) -> None:
    """Write `target`.npy, the middle maps f16 [count, 120, 10, 10] of drawn views, and
    `target`.concepts.npy [count], which comes last."""
    rng = np.random.default_rng(seed)
    shape = (count, 120, MIDDLE_SIDE, MIDDLE_SIDE)
    maps = np.lib.format.open_memmap(target.with_suffix(".npy"), "w+", np.float16, shape)
    order = _order(rng, drawings, count)
    concepts = np.zeros(count, np.int64)
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        views, concepts[rows] = _draw(rng, drawings, grounds, order[rows])
        maps[rows] = extractor.views(normalised(views))
    maps.flush()
    np.save(target.with_suffix(".concepts.npy"), concepts)


def draw_views(
    rng: np.random.Generator, drawings: Drawings, grounds: Sequence[Pixels], count: int
) -> tuple[Pixels, NDArray[np.int64]]:
    """Glimpses [count, 160, 160, 3] and their concepts [count]."""
    return _draw(rng, drawings, grounds, _order(rng, drawings, count))


def _draw(
    rng: np.random.Generator,
    drawings: Drawings,
    grounds: Sequence[Pixels],
    order: NDArray[np.int64],
) -> tuple[Pixels, NDArray[np.int64]]:
    drawn = [drawings.draw(rng, int(index)) for index in order]
    others = drawings.cutouts or [rgba for rgba, _ in drawn]
    views = [draw_view(rng, rgba, others, grounds) for rgba, _ in drawn]
    return np.stack(views), np.array([concept for _, concept in drawn])


def _order(rng: np.random.Generator, drawings: Drawings, count: int) -> NDArray[np.int64]:
    """`count` drawings in a random order, each as often as it should be, up to rounding."""
    edges = np.cumsum(drawings.shares())
    at = (np.arange(count) + rng.random()) / count
    return rng.permutation(np.minimum(np.searchsorted(edges, at), len(edges) - 1))


def train_tail(
    encoder: dict[str, Array],
    maps: NDArray[np.float16],
    concepts: NDArray[np.int64],
    n_concepts: int,
    epochs: float,
    seed: int,
) -> tuple[Tail, nn.Linear, list[float]]:
    """The trained tail, the layer from its features to concepts, and every step's loss."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tail, last = Tail(encoder), nn.Linear(FEATURES, n_concepts)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    tail.to(memory_format=torch.channels_last)
    rates = [TAIL_RATE, LAST_RATE]
    optimiser = torch.optim.AdamW(
        [{"params": tail.parameters()}, {"params": last.parameters()}], weight_decay=DECAY
    )
    steps = max(round(epochs * len(maps) / BATCH), 1)
    losses: list[float] = []
    order = np.empty(0, np.int64)
    began = time.monotonic()
    for step in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(maps))
        rows, order = np.sort(order[:BATCH]), order[BATCH:]
        warm = min(1.0, (step + 1) / min(200, 0.1 * steps + 1))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * warm * 0.5 * (1 + np.cos(np.pi * step / steps))
        x = torch.from_numpy(maps[rows].astype(np.float32))
        features = tail(x.to(memory_format=torch.channels_last))
        logits = last(functional.dropout(features, DROPOUT))
        loss = functional.cross_entropy(
            logits, torch.from_numpy(concepts[rows]), label_smoothing=SMOOTHING
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tail.parameters(), 2.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99:
            said = f"tail: step {step + 1} of {steps}, loss {np.mean(losses[-100:]):.3f}"
            print(f"{said}, {time.monotonic() - began:.0f} s", flush=True)
    return tail, last, losses


@torch.no_grad()
def tail_features(tail: Tail, maps: NDArray[np.float16]) -> NDArray[np.float32]:
    """The tail's features [k, 1280] of middle maps [k, 120, 10, 10]."""
    parts = [
        tail(
            torch.from_numpy(maps[i : i + 64].astype(np.float32)).to(
                memory_format=torch.channels_last
            )
        ).numpy()
        for i in range(0, len(maps), 64)
    ]
    return np.concatenate(parts)
