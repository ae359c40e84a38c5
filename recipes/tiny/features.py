"""What the frozen encoder sees, for training: the same ONNX nodes as in the shipped graph.

A picture is 520 x 520, normalised as the model's processor does it. The whole is looked at
with 260 x 260 pixels, and a part of it, a glimpse, with 160 x 160 cut out of the full picture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from classifier import Array, Classifier, Maps
from numpy.typing import NDArray

from edgevlm.models.onnx_export.graph import Graph

PICTURE = 520
GLIMPSE = 160
# A glimpse's colours are read off a copy this much coarser.
COARSER = 4
SWATCH = GLIMPSE // COARSER
MIDDLE_SIDE = -(-GLIMPSE // 16)
# The encoder's own normalisation: (level - MEAN) / SCALE.
MEAN, SCALE = 127.0, 128.0
# A glimpse is a square this much larger than the longer side of its box.
MARGIN = 1.15

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GlimpseNodes:
    """Value names: `views` [k, 3, 160, 160] and `swatches` [k, 3, 40, 40]."""

    views: str
    swatches: str


def normalised(pixels: NDArray[np.uint8]) -> Floats:
    """Levels [n, 520, 520, 3] as the graph's input [n, 3, 520, 520]."""
    return ((pixels.astype(np.float32) - MEAN) / SCALE).transpose(0, 3, 1, 2)


def squares(boxes: Floats) -> Floats:
    """The square looked at for each box [..., 4], in shares; it stays within the picture."""
    low, high = boxes[..., :2], boxes[..., 2:]
    side = np.clip(MARGIN * (high - low).max(axis=-1, keepdims=True), 0.02, 1)
    centre = np.clip((low + high) / 2, side / 2, 1 - side / 2)
    return np.concatenate([centre - side / 2, centre + side / 2], axis=-1).astype(np.float32)


def add_squares(graph: Graph, boxes: str) -> str:
    """Add `squares` for boxes [k, 4]."""
    node = graph.node

    def number(value: float) -> str:
        return graph.constant(value, np.float32)

    low, high = graph.nodes("Split", boxes, n_outputs=2, axis=-1, num_outputs=2)
    longer = node("ReduceMax", node("Sub", high, low), graph.constant([-1]), keepdims=1)
    side = node("Clip", node("Mul", longer, number(MARGIN)), number(0.02), number(1))
    radius = node("Mul", side, number(0.5))
    centre = node("Mul", node("Add", low, high), number(0.5))
    centre = node("Min", node("Max", centre, radius), node("Sub", number(1), radius))
    return node("Concat", node("Sub", centre, radius), node("Add", centre, radius), axis=-1)


def add_glimpses(graph: Graph, pixels: str, regions: str, pictures: str) -> GlimpseNodes:
    """Cut `regions` [k, 4], shares, out of pixels [n, 3, 520, 520]; `pictures` [k] says which."""
    views = graph.node(
        "RoiAlign",
        pixels,
        regions,
        pictures,
        output_height=GLIMPSE,
        output_width=GLIMPSE,
        sampling_ratio=2,
        spatial_scale=float(PICTURE),
    )
    window = [COARSER, COARSER]
    swatches = graph.node("AveragePool", views, kernel_shape=window, strides=window)
    return GlimpseNodes(views, swatches)


class Extractor:
    """Features of pictures and glimpses through ONNX Runtime."""

    def __init__(self, state: dict[str, Array], threads: int = 1) -> None:
        self._whole = _session(lambda graph: _add_whole(graph, state), threads)
        self._glimpses = _session(lambda graph: _add_glimpse_features(graph, state), threads)
        self._middle = _session(lambda graph: _add_view_features(graph, state), threads)

    def whole(self, pixels: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Of [n, 3, 520, 520]: fine [n, 48, 33, 33], middle [n, 120, 17, 17], coarse
        [n, 352, 9, 9] and pooled [n, 1280]."""
        return tuple(self._whole.run(None, {"pixels": pixels}))

    def glimpses(self, pixels: Floats, boxes: Floats) -> tuple[Floats, Floats]:
        """Of one picture [1, 3, 520, 520] and boxes [k, 4]: the middle maps [k, 120, 10, 10]
        and the swatches [k, 3, 40, 40]."""
        return tuple(self._glimpses.run(None, {"pixels": pixels, "regions": squares(boxes)}))

    def views(self, views: Floats) -> Floats:
        """Of glimpses [k, 3, 160, 160] themselves: the middle maps [k, 120, 10, 10]."""
        return self._middle.run(None, {"views": views})[0]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def _session(build: Callable[[Graph], Any], threads: int) -> onnxruntime.InferenceSession:
    graph = Graph("features")
    build(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.onnx"
        graph.save(path, {})
        return onnxruntime.InferenceSession(path.read_bytes(), session_options(threads))


def add_whole_view(graph: Graph, classifier: Classifier, pixels: str) -> tuple[Maps, str]:
    """The encoder's maps and pooled features of pixels [n, 3, 520, 520] at half their size."""
    view = graph.node("AveragePool", pixels, kernel_shape=[2, 2], strides=[2, 2])
    maps = classifier.maps(view)
    return maps, classifier.pooled(maps)


def _add_whole(graph: Graph, state: dict[str, Array]) -> None:
    pixels = graph.input("pixels", np.float32, ["n", 3, PICTURE, PICTURE])
    maps, pooled = add_whole_view(graph, Classifier(graph, state), pixels)
    graph.output(maps.fine, "fine", np.float32, ["n", 48, 33, 33])
    graph.output(maps.middle, "middle", np.float32, ["n", 120, 17, 17])
    graph.output(maps.coarse, "coarse", np.float32, ["n", 352, 9, 9])
    graph.output(pooled, "pooled", np.float32, ["n", 1280])


def _add_glimpse_features(graph: Graph, state: dict[str, Array]) -> None:
    pixels = graph.input("pixels", np.float32, [1, 3, PICTURE, PICTURE])
    regions = graph.input("regions", np.float32, ["k", 4])
    count = graph.node("Shape", regions, start=0, end=1)
    pictures = graph.node("Expand", graph.constant([0]), count)
    glimpses = add_glimpses(graph, pixels, regions, pictures)
    middle = Classifier(graph, state).early_maps(glimpses.views, GLIMPSE)
    graph.output(middle, "middle", np.float32, ["k", 120, MIDDLE_SIDE, MIDDLE_SIDE])
    graph.output(glimpses.swatches, "swatches", np.float32, ["k", 3, SWATCH, SWATCH])


def _add_view_features(graph: Graph, state: dict[str, Array]) -> None:
    views = graph.input("views", np.float32, ["k", 3, GLIMPSE, GLIMPSE])
    middle = Classifier(graph, state).early_maps(views, GLIMPSE)
    graph.output(middle, "middle", np.float32, ["k", 120, MIDDLE_SIDE, MIDDLE_SIDE])
