"""Train the vision heads: build/tiny/views.npz, plain arrays.

    python recipes/tiny/train_views.py            # resumable: every part is kept when done
    python recipes/tiny/train_views.py --smoke    # under a minute; asserts that losses fall

In turn: the tail and the concepts from drawn glimpses, the detector, surfaces and sorts from
composed scenes and photographs, then what makes their probabilities honest, on cutouts and
scenes that none of them was trained on. The smoke run draws shapes only and fetches nothing
but the encoder.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from calibrate import calibrated
from captions import SHAPE, load_concepts
from classifier import Array, load_checkpoint
from drawn_views import Pixels
from features import Extractor, normalised
from heads import Tail
from photographs import load_photographs
from pictures import Cutout, load_cutouts, load_sources
from scenes import Scenes
from seen import Scene
from shapes import SHAPES
from stock import Stock
from train_scenes import (
    SceneFeatures,
    load_scenes,
    make_scenes,
    make_swatches,
    train_detector,
    train_sorts,
    train_surfaces,
)
from train_tail import Drawings, draw_views, make_views, tail_features, train_tail
from views import VIEWS, arrays, load_views, part, prefixed
from weights import CACHE, ENCODER

Arrays: TypeAlias = dict[str, Array]

SEED = 20
# Of 256 groups of cutouts, so many are kept for calibration.
ASIDE = 13


# Photographs are many-sided: so many more of them than scenes have by themselves.
MORE_PHOTOS = 0.2


@dataclass(frozen=True, slots=True)
class Sizes:
    views: int
    view_epochs: float
    scenes: int
    swatches: int
    detector_epochs: float
    head_epochs: float
    aside: int


FULL = Sizes(
    views=40000,
    view_epochs=1.6,
    scenes=5500,
    swatches=8000,
    detector_epochs=8,
    head_epochs=12,
    aside=400,
)
SMOKE = Sizes(
    views=96, view_epochs=8, scenes=24, swatches=48, detector_epochs=12, head_epochs=12, aside=12
)


@dataclass(frozen=True, slots=True)
class Material:
    """What is drawn from; `aside` is for calibration alone."""

    drawings: Drawings
    aside: Drawings
    stock: Stock
    scenes: Scenes
    aside_scenes: Scenes
    grounds: list[Pixels]
    has_photographs: bool = True


def load_material() -> Material:
    cutouts, aside = split_cutouts()
    photographs = [photo for photo in load_photographs() if not photo.held_out]
    # Some photographs are too narrow to cut a ground from.
    return Material(
        drawings(cutouts),
        drawings(aside),
        Stock(cutouts, load_concepts()),
        Scenes(held_out=False, cutouts=cutouts, photos=photographs),
        Scenes(held_out=False, cutouts=aside, photos=photographs),
        [photo.rgb for photo in photographs if min(photo.rgb.shape[:2]) >= 160],
    )


def shapes_alone() -> Material:
    scenes = Scenes(held_out=False, cutouts=(), photos=())
    noise = np.random.default_rng(SEED).integers(0, 256, (2, 200, 200, 3), np.uint8)
    stock = Stock([], load_concepts())
    return Material(drawings([]), drawings([]), stock, scenes, scenes, list(noise), False)


def drawings(cutouts: list[Cutout]) -> Drawings:
    """The cutouts, and the shapes that concepts.txt knows."""
    concepts = enumerate(load_concepts())
    rows = {c.name.split(" ", 1)[1]: row for row, c in concepts if c.kind == SHAPE}
    return Drawings(
        [cutout.rgba for cutout in cutouts],
        np.array([cutout.concept for cutout in cutouts], np.int64),
        [(name, rows[name]) for name in SHAPES if name in rows],
    )


def split_cutouts() -> tuple[list[Cutout], list[Cutout]]:
    """Those to train on and those aside; none is held out. What one designer made of a concept
    falls on one side."""
    families = {source.name: source.family for source in load_sources()}
    kept = [cutout for cutout in load_cutouts() if not cutout.held_out]

    def chosen(cutout: Cutout) -> bool:
        label = f"{families[cutout.source]}/{cutout.concept}"
        return hashlib.sha256(label.encode()).digest()[0] < ASIDE

    # A concept without another drawing stays in training.
    known = {cutout.concept for cutout in kept if not chosen(cutout)}
    aside = [cutout for cutout in kept if chosen(cutout) and cutout.concept in known]
    return [c for c in kept if not chosen(c) or c.concept not in known], aside


def composed(sizes: Sizes, material: Material, extractor: Extractor, folder: Path) -> SceneFeatures:
    cache = folder / "scenes"
    if not cache.exists():

        def draw(rng: np.random.Generator) -> tuple[Scene, Pixels]:
            photo = rng.random() < MORE_PHOTOS and material.has_photographs
            sample = material.scenes.draw(rng, "photo" if photo else None)
            return sample.scene, sample.pixels

        make_scenes(extractor, draw, sizes.scenes, SEED, cache)
    return load_scenes(cache)


def make_tail(sizes: Sizes, material: Material, extractor: Extractor, folder: Path) -> Arrays:
    """From glimpses drawn for it, and those of the scenes' things."""
    views = folder / "drawn"
    if not views.with_suffix(".concepts.npy").exists():
        make_views(extractor, material.drawings, material.grounds, sizes.views, SEED, views)
    scenes = composed(sizes, material, extractor, folder)
    maps = np.concatenate([np.load(views.with_suffix(".npy"), mmap_mode="r"), scenes.maps])
    concepts = np.concatenate([np.load(views.with_suffix(".concepts.npy")), scenes.concepts])
    encoder = load_checkpoint(ENCODER.fetch())
    n_concepts = len(load_concepts())
    tail, last, losses = train_tail(encoder, maps, concepts, n_concepts, sizes.view_epochs, SEED)
    return {
        **prefixed("tail.", tail.state()),
        **prefixed("concepts.", arrays(last)),
        "losses": np.array(losses),
    }


def make_heads(sizes: Sizes, material: Material, extractor: Extractor, folder: Path) -> Arrays:
    """The detector, the surfaces and the sorts."""
    scenes = composed(sizes, material, extractor, folder)
    detector, detector_losses = train_detector(scenes, sizes.detector_epochs, SEED)
    tail = Tail(part(load_views(folder / "tail.npz"), "tail."))
    singles = folder / "swatches.npz"
    if not singles.exists():
        count = sizes.swatches
        make_swatches(extractor, material.stock, material.grounds, count, SEED, singles)
    with np.load(singles) as archive:
        parts = [
            (archive[name], getattr(scenes, name)) for name in ("maps", "swatches", "surfaces")
        ]
    maps, swatches, truth = (np.concatenate(pair) for pair in parts)
    features = tail_features(tail, maps)
    surfaces, surface_losses = train_surfaces(swatches, features, truth, sizes.head_epochs, SEED)
    pooled = scenes.pooled.astype(np.float32)
    sorts, sort_losses = train_sorts(pooled, np.array(scenes.sorts), sizes.head_epochs, SEED)
    return {
        **prefixed("detector.", arrays(detector)),
        **prefixed("surfaces.", arrays(surfaces)),
        **prefixed("sorts.", arrays(sorts)),
        "losses.detector": np.array(detector_losses),
        "losses.surfaces": np.array(surface_losses),
        "losses.sorts": np.array(sort_losses),
    }


def make_honest(
    sizes: Sizes, material: Material, extractor: Extractor, trained: Arrays, encoder: Arrays
) -> Arrays:
    """The trained weights with their last layers scaled by what pictures set aside show."""
    rng = np.random.default_rng(SEED + 1)
    views, concepts = draw_views(rng, material.aside, material.grounds, 4 * sizes.aside)
    features = tail_features(Tail(part(trained, "tail.")), extractor.views(normalised(views)))
    logits = features @ trained["concepts.weight"].T + trained["concepts.bias"]
    scenes = (material.aside_scenes.draw(rng) for _ in range(sizes.aside))
    pictures = ((sample.scene, sample.pixels) for sample in scenes)
    return calibrated(encoder, trained, logits, concepts, pictures)


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gave once, from `path`."""
    if not path.exists():
        draft = path.with_suffix(".part.npz")
        np.savez(draft, **make())
        draft.replace(path)
    return load_views(path)


def train(sizes: Sizes, material: Material, folder: Path, target: Path) -> Arrays:
    """Write `target`; returns all parts' arrays and, as losses*, the loss of every step."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load_checkpoint(ENCODER.fetch())
    extractor = Extractor(encoder)
    trained = kept(folder / "tail.npz", lambda: make_tail(sizes, material, extractor, folder))
    trained |= kept(folder / "heads.npz", lambda: make_heads(sizes, material, extractor, folder))
    weights = {name: a for name, a in trained.items() if not name.startswith("losses")}
    honest = make_honest(sizes, material, extractor, weights, encoder)
    draft = target.with_suffix(".part.npz")
    np.savez(draft, **honest)
    draft.replace(target)
    return trained


def smoke() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trained = train(SMOKE, shapes_alone(), Path(folder), Path(folder) / "views.npz")
    for name, losses in trained.items():
        if name.startswith("losses"):
            third = len(losses) // 3
            first, last = losses[:third].mean(), losses[-third:].mean()
            print(f"{name}: {first:.3f} at first, {last:.3f} at last")
            if not last < first:
                raise SystemExit(f"{name} did not fall")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    torch.set_num_threads(1)
    if parser.parse_args().smoke:
        smoke()
    else:
        train(FULL, load_material(), CACHE / "views", VIEWS)
