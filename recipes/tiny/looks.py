"""What the trained vision heads say of scenes, beside the truth: the decoder's second lesson.

    python recipes/tiny/looks.py --count 3000 --out build/tiny/looks.npz

The file holds, for n pictures, the fields of `seen.Look` but its words, logits as f16:

    classes [n, 1000], concepts [n, C], sorts [n, 5], boxes [n, 5, 4] f32, objectness [n, 5] f32,
    thing_concepts [n, 5, C], thing_surfaces [n, 5, S + 1]

and the truth, `seen.Scene`: scene_sorts [n], scene_things [n, 5, 2] (concept and surface, which
is -1 for no one colour; concept -1 for no thing), scene_boxes [n, 5, 4], scene_words [n] and
scene_charts [n] (text).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from classifier import load_checkpoint
from numpy.typing import NDArray
from scenes import Scenes
from seen import MAX_THINGS, Look, Scene, Thing
from views import load_views, look, open_views
from weights import CACHE, ENCODER

LOOKS = CACHE / "looks.npz"
SEED = 40
FULL_PRECISION = ("boxes", "objectness")
WORDS = ("word", "word_probability")


def make_looks(count: int, target: Path, seed: int = SEED) -> None:
    session = open_views(load_checkpoint(ENCODER.fetch()), load_views())
    rng = np.random.default_rng(seed)
    scenes = Scenes(held_out=False)
    samples: list[tuple[Scene, Look]] = []
    for i in range(count):
        sample = scenes.draw(rng)
        samples.append((sample.scene, look(session, sample.pixels)))
        if i % 250 == 249:
            print(f"looks: {i + 1} of {count}", flush=True)
    save_looks(samples, target)


def save_looks(samples: list[tuple[Scene, Look]], target: Path) -> None:
    names = [field.name for field in fields(Look) if field.name not in WORDS]
    looks = {
        name: np.stack([getattr(seen, name) for _, seen in samples]).astype(
            np.float32 if name in FULL_PRECISION else np.float16
        )
        for name in names
    }
    things = np.full((len(samples), MAX_THINGS, 2), -1)
    boxes = np.zeros((len(samples), MAX_THINGS, 4), np.float32)
    for i, (scene, _) in enumerate(samples):
        for j, thing in enumerate(scene.things):
            things[i, j] = thing.concept, thing.surface
            boxes[i, j] = thing.box
    draft = target.with_suffix(".part.npz")
    np.savez(
        draft,
        **looks,
        scene_sorts=np.array([scene.sort for scene, _ in samples]),
        scene_things=things,
        scene_boxes=boxes,
        scene_words=np.array([scene.word for scene, _ in samples]),
        scene_charts=np.array([scene.chart for scene, _ in samples]),
    )
    draft.replace(target)


def load_looks(path: Path = LOOKS) -> Iterator[tuple[Scene, Look]]:
    with np.load(path) as archive:
        columns = {name: archive[name] for name in archive.files}
    truth = {name: columns.pop(name) for name in list(columns) if name.startswith("scene_")}
    for i in range(len(truth["scene_sorts"])):
        scene = Scene(
            sort=int(truth["scene_sorts"][i]),
            things=_things(truth["scene_things"][i], truth["scene_boxes"][i]),
            word=str(truth["scene_words"][i]),
            chart=str(truth["scene_charts"][i]),
        )
        seen = {name: values[i].astype(np.float32) for name, values in columns.items()}
        yield scene, Look(**seen, word=-1, word_probability=0.0)


def _things(rows: NDArray[np.int64], boxes: NDArray[np.float32]) -> tuple[Thing, ...]:
    return tuple(
        Thing(int(concept), int(surface), (float(x0), float(y0), float(x1), float(y1)))
        for (concept, surface), (x0, y0, x1, y1) in zip(rows, boxes, strict=True)
        if concept >= 0
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=LOOKS)
    arguments = parser.parse_args()
    make_looks(arguments.count, arguments.out)
