"""What the detector, the surface and the sort of a picture are learnt from: composed scenes.

The encoder's features of every scene are worked out once and kept in build/tiny/; so are those
of the glimpses of its things, as a detector that errs a little would cut them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detector import Detector, Floats, loss, targets
from drawn_views import draw_view
from features import COARSER, MIDDLE_SIDE, SWATCH, Extractor, normalised
from heads import FEATURES, Surfaces
from numpy.typing import NDArray
from seen import MAX_THINGS, SORTS, SURFACES, Scene
from stock import Stock
from torch import Tensor, nn
from torch.nn import functional

SHAPES = {
    "fine": (48, 33, 33),
    "middle": (120, 17, 17),
    "coarse": (352, 9, 9),
    "pooled": (FEATURES,),
}
# The share of its side by which a box is off.
JITTER = 0.08
DETECTOR_BATCH, DETECTOR_RATE = 16, 2e-3
HEAD_BATCH, HEAD_RATE = 128, 1e-3
CHUNK = 16

Draw = Callable[[np.random.Generator], tuple[Scene, NDArray[np.uint8]]]


@dataclass(frozen=True, slots=True)
class SceneFeatures:
    """Features of n scenes and of the k things in them; `boxes` [n, 5, 4], NaN where there is
    none; `scene_of` [k]; `concepts` and `surfaces` [k], the last of which is S for no one
    colour; `maps` f16 [k, 120, 10, 10]; `swatches` f16 [k, 3, 40, 40]."""

    fine: NDArray[np.float16]
    middle: NDArray[np.float16]
    coarse: NDArray[np.float16]
    pooled: NDArray[np.float16]
    sorts: NDArray[np.int64]
    boxes: Floats
    scene_of: NDArray[np.int64]
    concepts: NDArray[np.int64]
    surfaces: NDArray[np.int64]
    maps: NDArray[np.float16]
    swatches: NDArray[np.float16]

    def boxes_of(self, rows: NDArray[np.int64]) -> list[Floats]:
        return [boxes[np.isfinite(boxes[:, 0])] for boxes in self.boxes[rows]]


def make_scenes(extractor: Extractor, draw: Draw, count: int, seed: int, folder: Path) -> None:
    """Write the features of `count` scenes into `folder`, one file each; it has its name once
    it is whole."""
    draft = folder.with_name(folder.name + ".part")
    draft.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    whole = {
        name: np.lib.format.open_memmap(draft / f"{name}.npy", "w+", np.float16, (count, *shape))
        for name, shape in SHAPES.items()
    }
    sorts, boxes = np.zeros(count, np.int64), np.full((count, MAX_THINGS, 4), np.nan, np.float32)
    things: list[tuple[int, int, int]] = []
    maps, swatches = [], []
    began = time.monotonic()
    for i in range(count):
        scene, levels = draw(rng)
        pixels = normalised(levels[None])
        for name, value in zip(SHAPES, extractor.whole(pixels), strict=True):
            whole[name][i] = value[0]
        sorts[i] = scene.sort
        if scene.things:
            boxes[i, : len(scene.things)] = [thing.box for thing in scene.things]
            found = extractor.glimpses(pixels, jittered(rng, boxes[i, : len(scene.things)]))
            maps.append(found[0].astype(np.float16))
            swatches.append(found[1].astype(np.float16))
            things += [
                (i, thing.concept, thing.surface % (len(SURFACES) + 1)) for thing in scene.things
            ]
        if i % 500 == 499:
            print(f"scenes: {i + 1} of {count}, {time.monotonic() - began:.0f} s", flush=True)
    scene_of, concepts, surfaces = np.array(things, np.int64).reshape(-1, 3).T
    glimpse = (0, 120, MIDDLE_SIDE, MIDDLE_SIDE), (0, 3, SWATCH, SWATCH)
    rest = {
        "sorts": sorts,
        "boxes": boxes,
        "scene_of": scene_of,
        "concepts": concepts,
        "surfaces": surfaces,
        "maps": np.concatenate([np.zeros(glimpse[0], np.float16), *maps]),
        "swatches": np.concatenate([np.zeros(glimpse[1], np.float16), *swatches]),
    }
    for name, value in rest.items():
        np.save(draft / f"{name}.npy", value)
    draft.replace(folder)


def load_scenes(folder: Path) -> SceneFeatures:
    return SceneFeatures(
        **{
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in SceneFeatures.__dataclass_fields__
        }
    )


def jittered(rng: np.random.Generator, boxes: Floats) -> Floats:
    """Boxes [k, 4] as a detector finds them."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + np.clip(rng.normal(0, JITTER, boxes.shape), -0.2, 0.2) * sides
    return np.clip(moved, 0, 1).astype(np.float32)


def train_detector(scenes: SceneFeatures, epochs: float, seed: int) -> tuple[Detector, list[float]]:
    torch.manual_seed(seed)
    detector = Detector().to(memory_format=torch.channels_last)

    def step(rows: NDArray[np.int64]) -> Tensor:
        maps = (_tensor(getattr(scenes, name)[rows]) for name in ("fine", "middle", "coarse"))
        return loss(detector(*maps), *targets(scenes.boxes_of(rows)))

    counts = np.isfinite(scenes.boxes[:, :, 0]).sum(axis=1)
    # A chart or a page of text is not a thing, and a photograph's things are not marked: what is
    # asked of those pictures is silence, and of the last nothing.
    known = np.flatnonzero((counts > 0) | (scenes.sorts != SORTS.index("photo")))
    rate = DETECTOR_RATE
    losses = _descend("detector", detector, step, known, epochs, DETECTOR_BATCH, rate, seed)
    return detector, losses


def make_swatches(
    extractor: Extractor,
    stock: Stock,
    grounds: Sequence[NDArray[np.uint8]],
    count: int,
    seed: int,
    target: Path,
) -> None:
    """Write glimpses of single things whose surface is known: `maps` f16 [count, 120, 10, 10],
    `swatches` f16 [count, 3, 40, 40] and `surfaces` [count]."""
    rng = np.random.default_rng(seed)
    maps, swatches, surfaces = [], [], []
    for _ in range(0, count, CHUNK):
        items = [stock.pick(rng, 1)[0] for _ in range(CHUNK)]
        rgba = [np.asarray(item.image) for item in items]
        drawn = [draw_view(rng, cutout, rgba, grounds, tinted=False) for cutout in rgba]
        views = normalised(np.stack(drawn))
        maps.append(extractor.views(views).astype(np.float16))
        squares = views.reshape(len(views), 3, SWATCH, COARSER, SWATCH, COARSER)
        swatches.append(squares.mean(axis=(3, 5)).astype(np.float16))
        surfaces += [item.surface % (len(SURFACES) + 1) for item in items]
    draft = target.with_suffix(".part.npz")
    np.savez(
        draft,
        maps=np.concatenate(maps),
        swatches=np.concatenate(swatches),
        surfaces=np.array(surfaces),
    )
    draft.replace(target)


def train_surfaces(
    swatches: NDArray[np.float16],
    features: Floats,
    truth: NDArray[np.int64],
    epochs: float,
    seed: int,
) -> tuple[Surfaces, list[float]]:
    """From swatches [k, 3, 40, 40] and the tail's features [k, 1280]."""
    torch.manual_seed(seed)
    surfaces = Surfaces()

    def step(rows: NDArray[np.int64]) -> Tensor:
        colours = _tensor(swatches[rows])
        # Left and right are the same to a colour.
        if rows[0] % 2:
            colours = colours.flip(3)
        logits = surfaces(colours, functional.dropout(torch.from_numpy(features[rows]), 0.5))
        return functional.cross_entropy(logits, torch.from_numpy(truth[rows]))

    rows = np.arange(len(features))
    losses = _descend("surfaces", surfaces, step, rows, epochs, HEAD_BATCH, HEAD_RATE, seed)
    return surfaces, losses


def train_sorts(
    pooled: Floats, sorts: NDArray[np.int64], epochs: float, seed: int
) -> tuple[nn.Linear, list[float]]:
    """From the encoder's features [n, 1280] of the whole pictures."""
    torch.manual_seed(seed)
    linear = nn.Linear(FEATURES, len(SORTS))
    shares = np.bincount(sorts, minlength=len(SORTS)).clip(1) / len(sorts)
    weight = torch.from_numpy((1 / shares / len(SORTS)).clip(max=5).astype(np.float32))

    def step(rows: NDArray[np.int64]) -> Tensor:
        x = functional.dropout(torch.from_numpy(pooled[rows]), 0.3)
        return functional.cross_entropy(linear(x), torch.from_numpy(sorts[rows]), weight)

    rows = np.arange(len(pooled))
    return linear, _descend("sorts", linear, step, rows, epochs, HEAD_BATCH, HEAD_RATE, seed)


def _descend(
    name: str,
    module: nn.Module,
    step: Callable[[NDArray[np.int64]], Tensor],
    rows: NDArray[np.int64],
    epochs: float,
    batch: int,
    rate: float,
    seed: int,
) -> list[float]:
    """AdamW along a cosine; returns every step's loss."""
    batch = min(batch, max(len(rows) // 4, 2))
    optimiser = torch.optim.AdamW(module.parameters(), weight_decay=0.01)
    steps = max(round(epochs * len(rows) / batch), 1)
    losses: list[float] = []
    for i, chosen in zip(range(steps), _batches(rows, batch, seed), strict=False):
        warm = min(1.0, (i + 1) / min(100, 0.1 * steps + 1))
        for group in optimiser.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + np.cos(np.pi * i / steps))
        value = step(chosen)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimiser.step()
        losses.append(value.item())
        if i % 200 == 199:
            print(f"{name}: step {i + 1} of {steps}, loss {np.mean(losses[-200:]):.3f}", flush=True)
    return losses


def _batches(rows: NDArray[np.int64], batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        for start in range(0, len(order) - batch + 1, batch):
            yield np.sort(order[start : start + batch])


def _tensor(values: NDArray[np.float16]) -> Tensor:
    tensor = torch.from_numpy(values.astype(np.float32))
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
