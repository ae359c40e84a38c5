"""The vision heads in one graph, and what they say of a picture.

    pixels 520 -> whole view 260 -> encoder -> classes, sort, five boxes
    whole picture and five boxes -> glimpses 160 -> encoder's early blocks -> trained tail
        -> concepts; with the colours of a coarser copy -> surfaces

`train_views.py` writes the weights, plain arrays in build/tiny/views.npz:

    detector.*, tail.* (named like the encoder's checkpoint), concepts.*, surfaces.*, sorts.*

The last layers are scaled so that softmax and sigmoid give honest probabilities.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnxruntime
from classifier import Array, Classifier
from detector import Detector, add_detector
from features import (
    GLIMPSE,
    PICTURE,
    add_glimpses,
    add_squares,
    add_whole_view,
    normalised,
    session_options,
)
from heads import FEATURES, Surfaces, Tail, add_linear, add_surfaces, add_tail
from numpy.typing import NDArray
from seen import MAX_THINGS, SORTS, SURFACES, Look
from torch import nn
from weights import CACHE

from edgevlm.models.onnx_export.graph import Graph

VIEWS = CACHE / "views.npz"
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class LookNodes:
    """Value names of a `Look` of n pictures but for its words.

    classes [n, 1000], concepts [n, C], sorts [n, 5], boxes [n, 5, 4], objectness [n, 5],
    thing_concepts [n, 5, C], thing_surfaces [n, 5, S + 1].
    """

    classes: str
    concepts: str
    sorts: str
    boxes: str
    objectness: str
    thing_concepts: str
    thing_surfaces: str


def load_views(path: Path = VIEWS) -> dict[str, Array]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def untrained_views(encoder: dict[str, Array], n_concepts: int, seed: int = 0) -> dict[str, Array]:
    """Weights of the right shapes: the encoder's own tail, and heads that know nothing."""
    rng = np.random.default_rng(seed)

    def linear(name: str, n_out: int) -> dict[str, Array]:
        weight = rng.normal(0, 0.02, (n_out, FEATURES)).astype(np.float32)
        return {f"{name}.weight": weight, f"{name}.bias": np.zeros(n_out, np.float32)}

    return {
        **prefixed("detector.", arrays(Detector())),
        **prefixed("tail.", Tail(encoder).state()),
        **prefixed("surfaces.", arrays(Surfaces())),
        **linear("concepts", n_concepts),
        **linear("sorts", len(SORTS)),
    }


def arrays(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {prefix + name: array for name, array in arrays.items()}


def part(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): a for n, a in weights.items() if n.startswith(prefix)}


def add_views(
    graph: Graph, encoder: dict[str, Array], views: Mapping[str, Array], pixels: str
) -> LookNodes:
    """Add all that is seen in pixels [n, 3, 520, 520], normalised as the processor does it.

    `encoder` is the checkpoint of EfficientNet-Lite2, `views` what `load_views` gives.
    """
    classifier = Classifier(graph, encoder)
    maps, pooled = add_whole_view(graph, classifier, pixels)
    boxes, objectness = add_detector(graph, part(views, "detector."), maps)
    regions, pictures = _add_regions(graph, boxes)
    glimpses = add_glimpses(graph, pixels, regions, pictures)
    # In two goes, whose activations lie in the same memory: 25 MB less, no slower.
    halves = graph.nodes("Split", glimpses.views, n_outputs=2, axis=0, num_outputs=2)
    middles = [classifier.early_maps(half, GLIMPSE) for half in halves]
    middle = graph.node("Concat", *middles, axis=0)
    features = add_tail(graph, part(views, "tail."), middle, GLIMPSE)
    concepts = add_linear(graph, views, "concepts", features)
    surfaces = add_surfaces(graph, views, glimpses.swatches, features)
    whole, things = _add_split(graph, concepts)
    return LookNodes(
        classes=classifier.logits(pooled),
        concepts=graph.node("Squeeze", whole, graph.constant([1])),
        sorts=add_linear(graph, views, "sorts", pooled),
        boxes=boxes,
        objectness=objectness,
        thing_concepts=things,
        thing_surfaces=_add_split(graph, surfaces)[1],
    )


def _add_regions(graph: Graph, boxes: str) -> tuple[str, str]:
    """The whole picture and the squares of its boxes [n, 5, 4]: [n * 6, 4], and of which picture
    each is [n * 6]."""
    node = graph.node
    n = node("Shape", boxes, start=0, end=1)
    whole = graph.constant([[WHOLE]], np.float32)
    first = node("Expand", whole, node("Concat", n, graph.constant([1, 4]), axis=0))
    regions = node("Concat", first, add_squares(graph, boxes), axis=1)
    numbers = node("Range", graph.constant(0), node("Squeeze", n), graph.constant(1))
    column = node("Unsqueeze", numbers, graph.constant([1]))
    repeated = node("Expand", column, graph.constant([1, 1 + MAX_THINGS]))
    flat = graph.constant([-1])
    return node("Reshape", regions, graph.constant([-1, 4])), node("Reshape", repeated, flat)


def _add_split(graph: Graph, rows: str) -> tuple[str, str]:
    """Rows [n * 6, k] as those of the pictures [n, 1, k] and of their things [n, 5, k]."""
    shape = graph.node(
        "Concat",
        graph.constant([-1, 1 + MAX_THINGS]),
        graph.node("Shape", rows, start=1, end=2),
        axis=0,
    )
    by_picture = graph.node("Reshape", rows, shape)
    sizes = graph.constant([1, MAX_THINGS])
    whole, things = graph.nodes("Split", by_picture, sizes, n_outputs=2, axis=1)
    return whole, things


def open_views(
    encoder: dict[str, Array], views: Mapping[str, Array], threads: int = 1
) -> onnxruntime.InferenceSession:
    """The heads alone as a session for `look`: everything of a `Look` but its words."""
    graph = Graph("views")
    pixels = graph.input("pixels", np.float32, ["n", 3, PICTURE, PICTURE])
    nodes = add_views(graph, encoder, views, pixels)
    n_concepts = len(views["concepts.bias"])
    things, surfaces = ["n", MAX_THINGS], len(SURFACES) + 1
    shapes = (["n", 1000], ["n", n_concepts], ["n", len(SORTS)], [*things, 4], things,
              [*things, n_concepts], [*things, surfaces])  # fmt: skip
    for field, shape in zip(fields(nodes), shapes, strict=True):
        graph.output(getattr(nodes, field.name), field.name, np.float32, shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "views.onnx"
        graph.save(path, {})
        return onnxruntime.InferenceSession(path.read_bytes(), session_options(threads))


def look(session: onnxruntime.InferenceSession, pixels: NDArray[np.uint8]) -> Look:
    """Run `open_views` on a picture [520, 520, 3]; no word is read."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {"pixels": normalised(pixels[None])})
    found = {name: value[0] for name, value in zip(names, values, strict=True)}
    return Look(**found, word=-1, word_probability=0.0)
