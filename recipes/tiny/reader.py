"""The reader of printed words as ONNX nodes, straight from the arrays that train_reader.py wrote.

Batch normalisation is folded into the convolutions, and weights are stored as fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from classifier import Array, half
from onnx import TensorProto
from reader_net import (
    BLANK,
    CELLS,
    EPSILON,
    FIELDS,
    LEAST_WIDTH,
    LETTERS,
    LOCATOR,
    MARGIN_X,
    MARGIN_Y,
    MASS_FLOOR,
    RECOGNISER,
    SHARE_FLOOR,
    SHRUNK,
    Layer,
    cell_places,
    crop_axes,
    lexicon_ids,
)
from weights import CACHE

from edgevlm.models.onnx_export.graph import Graph

READER = CACHE / "reader.npz"


def load_reader(path: Path = READER) -> dict[str, Array]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def add_reader(
    graph: Graph, state: dict[str, Array], pixels: str, words: Sequence[str]
) -> tuple[str, str, str]:
    """Add `Reader` from pixels [n, 3, 520, 520] to its outputs: the logit that there is text
    [n], the row of `words` that fits best [n] int64, the probability that it is right [n]."""
    found, fields = _add_locator(graph, state, pixels)
    crops = _add_crop(graph, pixels, fields)
    letters, text = _add_recogniser(graph, state, crops)
    logs = graph.node("LogSoftmax", letters, axis=2)
    flat = graph.node("Flatten", logs)
    stored = graph.weight("reader.words", lexicon_ids(words))
    ids = graph.node("Cast", stored, to=TensorProto.INT64)
    first = graph.constant(np.arange(LETTERS)[:, None] * (BLANK + 1))
    each = graph.node("Gather", flat, graph.node("Add", ids, first), axis=1)
    scores = graph.node("ReduceSum", each, graph.constant([1]), keepdims=0)
    row = graph.node("ArgMax", scores, axis=1, keepdims=0)
    fit = graph.node("ReduceMax", scores, graph.constant([1]), keepdims=1)
    softmax = graph.node("Softmax", scores, axis=1)
    share = graph.node("ReduceMax", softmax, graph.constant([1]), keepdims=1)
    rest = graph.node("Sub", graph.constant(1 + SHARE_FLOOR, np.float32), share)
    ahead = graph.node("Log", graph.node("Div", share, rest))
    one = graph.node("Exp", graph.node("Sub", fit, fit))
    weighed = graph.node("Concat", found, text, ahead, fit, one, axis=1)
    presence = np.zeros((5, 1), np.float32)
    presence[[0, 1, 4], 0] = state["presence"]
    outputs = [
        graph.node("MatMul", weighed, graph.weight(f"reader.{name}", value))
        for name, value in (("presence", presence), ("certainty", state["certainty"][:, None]))
    ]
    axis = graph.constant([1])
    presence_logit, certainty = (graph.node("Squeeze", value, axis) for value in outputs)
    return presence_logit, row, graph.node("Sigmoid", certainty)


def _add_locator(graph: Graph, state: dict[str, Array], pixels: str) -> tuple[str, str]:
    window = [SHRUNK, SHRUNK]
    smaller = graph.node("AveragePool", pixels, kernel_shape=window, strides=window)
    x = _add_stack(graph, state, "locator.stack", LOCATOR, _add_normalised(graph, smaller))
    out = _add_affine(graph, state, "locator.head", "Conv", x)
    flat = graph.node("Reshape", out, graph.constant([0, 1 + FIELDS, CELLS * CELLS]))
    heat, fields = graph.nodes("Split", flat, graph.constant([1, FIELDS]), n_outputs=2, axis=1)
    heat = graph.node("Squeeze", heat, graph.constant([1]))
    found = graph.node("ReduceLogSumExp", heat, graph.constant([1]), keepdims=1)
    fields = graph.node("Add", fields, graph.weight("reader.places", cell_places()))
    at = graph.node("ArgMax", heat, axis=1, keepdims=1)
    at = graph.node("Unsqueeze", at, graph.constant([2]))
    at = graph.node("Expand", at, graph.constant([1, FIELDS, 1]))
    return found, graph.node("GatherElements", fields, at, axis=2)


def _add_crop(graph: Graph, pixels: str, fields: str) -> str:
    """As `crop`, from fields [n, 5, 1]."""

    def scaled(value: str, by: float) -> str:
        return graph.node("Mul", value, graph.constant(by, np.float32))

    x, y, width, slope, height = graph.nodes("Split", fields, n_outputs=5, axis=1, num_outputs=5)
    down = scaled(graph.node("Exp", height), MARGIN_Y)
    across = scaled(graph.node("Exp", width), MARGIN_X)
    across = graph.node("Max", across, scaled(down, LEAST_WIDTH))
    pairs = (
        (x, y),
        (across, graph.node("Mul", slope, across)),
        (
            graph.node("Neg", graph.node("Mul", slope, down)),
            down,
        ),
    )
    centre, right, below = (
        graph.node(
            "Reshape",
            graph.node("Concat", *pair, axis=1),
            graph.constant([-1, 1, 1, 2]),
        )
        for pair in pairs
    )
    a, b = (graph.constant(v, np.float32) for v in crop_axes())
    grid = graph.node("Add", centre, graph.node("Mul", a, right))
    grid = graph.node("Add", grid, graph.node("Mul", b, below))
    fine = graph.node(
        "GridSample", pixels, grid, mode="linear", padding_mode="border", align_corners=0
    )
    return graph.node("AveragePool", fine, kernel_shape=[2, 2], strides=[2, 2])


def _add_recogniser(graph: Graph, state: dict[str, Array], crops: str) -> tuple[str, str]:
    name = "recogniser"
    x = _add_stack(graph, state, f"{name}.stack", RECOGNISER, _add_normalised(graph, crops))
    columns = graph.node("Squeeze", x, graph.constant([2]))
    ranks = _add_affine(graph, state, f"{name}.ranks", "Conv", columns)
    bias = graph.weight(f"{name}.rank_bias", state[f"{name}.rank_bias"])
    members = graph.node("Softmax", graph.node("Add", ranks, bias), axis=1)
    _, members = graph.nodes("Split", members, graph.constant([1, LETTERS]), n_outputs=2, axis=1)
    columns = graph.node("Transpose", columns, perm=[0, 2, 1])
    mass = graph.node("ReduceSum", members, graph.constant([2]), keepdims=1)
    mass = graph.node("Add", mass, graph.constant(MASS_FLOOR, np.float32))
    pooled = graph.node("Div", graph.node("MatMul", members, columns), mass)
    letters = _add_affine(graph, state, f"{name}.letters", "MatMul", pooled)
    mean = graph.node("ReduceMean", columns, graph.constant([1]), keepdims=0)
    return letters, _add_affine(graph, state, f"{name}.presence", "MatMul", mean)


def _add_affine(graph: Graph, state: dict[str, Array], name: str, op: str, x: str) -> str:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if op == "Conv":
        return graph.node(
            op, x, half(graph, f"{name}.weight", weight), graph.weight(f"{name}.bias", bias)
        )
    product = graph.node(op, x, half(graph, f"{name}.weight", weight.T))
    return graph.node("Add", product, graph.weight(f"{name}.bias", bias))


def _add_normalised(graph: Graph, pixels: str) -> str:
    mean = graph.node("ReduceMean", pixels, graph.constant([2, 3]))
    centred = graph.node("Sub", pixels, mean)
    square = graph.node(
        "ReduceMean", graph.node("Mul", centred, centred), graph.constant([1, 2, 3])
    )
    square = graph.node("Add", square, graph.constant(EPSILON, np.float32))
    return graph.node("Div", centred, graph.node("Sqrt", square))


def _add_stack(
    graph: Graph, state: dict[str, Array], name: str, layers: Sequence[Layer], x: str
) -> str:
    for i, layer in enumerate(layers):
        conv, norm = f"{name}.convs.{i}", f"{name}.norms.{i}"
        gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + EPSILON)
        weight = state[f"{conv}.weight"] * gain[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        y = graph.node(
            "Conv",
            x,
            half(graph, f"{conv}.weight", weight),
            graph.weight(f"{conv}.bias", bias.astype(np.float32)),
            strides=list(layer.stride),
            pads=[*layer.padding, *layer.padding],
            dilations=list(layer.dilation),
        )
        y = graph.node("Relu", y)
        x = graph.node("Add", x, y) if layer.skip else y
    return x
