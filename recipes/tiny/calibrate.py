"""Making the heads' probabilities honest, on pictures that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from classifier import Array
from detector import Floats
from numpy.typing import NDArray
from seen import SURFACES, Look, Scene
from views import look, open_views

# A box is right from this intersection over union on.
RIGHT = 0.5
TEMPERATURES = np.geomspace(0.25, 4, 121)


def best_temperature(logits: Floats, truth: NDArray[np.int64]) -> float:
    """What logits [n, k] are to be divided by for the likeliest truth [n]."""

    def surprise(temperature: float) -> float:
        scaled = logits / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scaled).sum(axis=1))
        return float((log_sum - scaled[np.arange(len(truth)), truth]).mean())

    return float(min(TEMPERATURES, key=surprise))


def best_line(logits: Floats, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Gain and bias that make logits [n] of `truth` honest (Platt 1999), by Newton's method."""
    x = np.stack([logits, np.ones_like(logits)], axis=1).astype(np.float64)
    line = np.array([1.0, 0.0])
    for _ in range(30):
        p = 1 / (1 + np.exp(-(x @ line)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        line = line + np.linalg.solve(curvature, x.T @ (truth - p) - 1e-3 * (line - (1, 0)))
    gain, bias = (float(v) for v in line)
    return max(gain, 0.1), bias


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union [n, m] of boxes [n, 4] and [m, 4]."""
    low, high = (f(a[:, None, s], b[None, :, s]) for f, s in
                 ((np.maximum, slice(0, 2)), (np.minimum, slice(2, 4))))  # fmt: skip
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


def matches(seen: Look, scene: Scene) -> NDArray[np.int64]:
    """For each of the five boxes the thing of the scene that it shows, or -1; the surest box
    has the first choice."""
    found = np.full(len(seen.boxes), -1)
    if scene.things:
        same = overlaps(seen.boxes, np.array([thing.box for thing in scene.things], np.float32))
        for i in range(len(found)):
            thing = int(same[i].argmax())
            if same[i, thing] >= RIGHT:
                found[i] = thing
                same[:, thing] = 0
    return found


def calibrated(
    encoder: dict[str, Array],
    views: Mapping[str, Array],
    concept_logits: Floats,
    concepts: NDArray[np.int64],
    scenes: Iterable[tuple[Scene, NDArray[np.uint8]]],
) -> dict[str, Array]:
    """The weights with their last layers scaled. Concepts are judged by logits [n, C] of drawn
    views of other cutouts, all else by scenes."""
    session = open_views(encoder, views)
    looked = [(scene, look(session, pixels)) for scene, pixels in scenes]
    matched = [matches(seen, scene) for scene, seen in looked]
    objectness = np.concatenate([seen.objectness for _, seen in looked])
    right = np.concatenate(matched) >= 0
    certainty = np.clip(objectness, 1e-6, 1 - 1e-6)
    gain, bias = best_line(np.log(certainty / (1 - certainty)), right)

    surfaces = [
        (seen.thing_surfaces[i], scene.things[thing].surface % (len(SURFACES) + 1))
        for (scene, seen), rows in zip(looked, matched, strict=True)
        for i, thing in enumerate(rows)
        if thing >= 0
    ]
    result = dict(views)
    out = {name: result[f"detector.out.{name}"].copy() for name in ("weight", "bias")}
    out["weight"][0] *= gain
    out["bias"][0] = out["bias"][0] * gain + bias
    result |= {f"detector.out.{name}": value for name, value in out.items()}
    pairs = {
        "concepts": (concept_logits, concepts),
        "sorts": (
            np.stack([seen.sorts for _, seen in looked]),
            np.array([scene.sort for scene, _ in looked]),
        ),
    }
    if surfaces:
        logits, truth = zip(*surfaces, strict=True)
        pairs["surfaces.out"] = (np.stack(logits), np.array(truth))
    for name, (values, truth) in pairs.items():
        temperature = best_temperature(values, truth)
        print(f"{name}: temperature {temperature:.2f} from {len(truth)}", flush=True)
        for tensor in ("weight", "bias"):
            result[f"{name}.{tensor}"] = result[f"{name}.{tensor}"] / np.float32(temperature)
    print(f"objectness: gain {gain:.2f}, bias {bias:.2f} from {len(right)}", flush=True)
    return result
