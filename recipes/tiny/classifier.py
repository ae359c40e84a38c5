"""EfficientNet-Lite2 as ONNX nodes, straight from the checkpoint's tensors.

The architecture is read off the tensor shapes but for the strides (Tan and Le 2019,
arXiv:1905.11946; the Lite variants have ReLU6 and no squeeze-and-excitation). Batch
normalisation is folded into the convolutions. Weights are stored as fp16 and cast back in the
graph: ONNX Runtime folds the casts when it loads, so the arithmetic is fp32. (int8 weights
would halve the file; they changed the first class of 11 in 220 pictures, fp16 of none.)

One `Classifier` may look several times, at views of any size: the weights are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from edgevlm.models.onnx_export.graph import Graph

IMAGE_SIZE = 260
# The blocks that halve the resolution, besides the stem.
STRIDED_BLOCKS = (1, 4, 7, 15)
BATCH_NORM_EPSILON = 1e-3

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Maps:
    """What the blocks before a halving, and the last, make of a view: value names.

    `fine` [n, 48, h/8, w/8], `middle` [n, 120, h/16, w/16], `coarse` [n, 352, h/32, w/32].
    """

    fine: str
    middle: str
    coarse: str


def half(graph: Graph, name: str, value: Array) -> str:
    """A weight stored at 16 bits and used at 32."""
    stored = graph.weight(name, value.astype(np.float16))
    return graph.node("Cast", stored, to=TensorProto.FLOAT)


def load_checkpoint(path: Path) -> dict[str, Array]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


class Classifier:
    """The network in a graph. `prefix` keeps the weights of two networks apart."""

    def __init__(self, graph: Graph, state: dict[str, Array], prefix: str = "") -> None:
        self._graph = graph
        self._state = state
        self._prefix = prefix
        self._values: dict[str, str] = {}

    def maps(self, pixels: str, size: int = IMAGE_SIZE) -> Maps:
        """Add the blocks for pixels [n, 3, size, size]."""
        return self._blocks(*self._stem(pixels, size), range(1 + _last_block(self._state)))

    def early_maps(self, pixels: str, size: int) -> str:
        """Add the blocks before the last halving: `Maps.middle` alone."""
        return self._blocks(*self._stem(pixels, size), range(STRIDED_BLOCKS[-1])).coarse

    def late_maps(self, middle: str, size: int) -> Maps:
        """Add the blocks from the last halving on, for `Maps.middle` of views of `size`."""
        late = range(STRIDED_BLOCKS[-1], 1 + _last_block(self._state))
        return self._blocks(middle, -(-size // 16), late)

    def pooled(self, maps: Maps) -> str:
        """Add the head and the mean over places: [n, 1280]."""
        x, _ = self._convolution(maps.coarse, "_conv_head", "_bn1", 0)
        return self._graph.node("Flatten", self._graph.node("GlobalAveragePool", self._relu6(x)))

    def logits(self, pooled: str) -> str:
        """Add the last layer: class logits [n, 1000]."""
        weight = self._half("_fc.weight", self._state["_fc.weight"])
        bias = self._weight("_fc.bias", self._state["_fc.bias"])
        return self._graph.node("Gemm", pooled, weight, bias, transB=1)

    def _stem(self, pixels: str, size: int) -> tuple[str, int]:
        x, size = self._convolution(pixels, "_conv_stem", "_bn0", size, stride=2)
        return self._relu6(x), size

    def _blocks(self, x: str, size: int, blocks: range) -> Maps:
        """`coarse` is what the last of `blocks` gives."""
        before: dict[int, str] = {}
        for block in blocks:
            before[block] = x
            x, size = self._block(x, f"_blocks.{block}", size, block in STRIDED_BLOCKS)
        fine, middle = (before.get(block, "") for block in STRIDED_BLOCKS[-2:])
        return Maps(fine, middle, x)

    def _block(self, x: str, name: str, size: int, strided: bool) -> tuple[str, int]:
        """One inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381)."""
        inner, channels_in = x, self._state[f"{name}._depthwise_conv.weight"].shape[0]
        if f"{name}._expand_conv.weight" in self._state:
            channels_in = self._state[f"{name}._expand_conv.weight"].shape[1]
            inner, _ = self._convolution(inner, f"{name}._expand_conv", f"{name}._bn0", size)
            inner = self._relu6(inner)
        stride = 2 if strided else 1
        inner, out_size = self._convolution(
            inner, f"{name}._depthwise_conv", f"{name}._bn1", size, stride
        )
        inner = self._relu6(inner)
        projected, _ = self._convolution(inner, f"{name}._project_conv", f"{name}._bn2", out_size)
        channels_out = self._state[f"{name}._project_conv.weight"].shape[0]
        if not strided and channels_in == channels_out:
            projected = self._graph.node("Add", projected, x)
        return projected, out_size

    def _convolution(
        self, x: str, conv: str, norm: str, size: int, stride: int = 1
    ) -> tuple[str, int]:
        weight, bias = folded(self._state, conv, norm)
        kernel = weight.shape[-1]
        before, after, out_size = same_padding(size, kernel, stride)
        out = self._graph.node(
            "Conv",
            x,
            self._half(f"{conv}.weight", weight),
            self._weight(f"{conv}.bias", bias),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=weight.shape[0] if weight.shape[1] == 1 else 1,
        )
        return out, out_size

    def _relu6(self, x: str) -> str:
        low, high = (self._graph.constant(limit, np.float32) for limit in (0, 6))
        return self._graph.node("Clip", x, low, high)

    def _half(self, name: str, value: Array) -> str:
        if name not in self._values:
            self._values[name] = half(self._graph, self._prefix + name, value)
        return self._values[name]

    def _weight(self, name: str, value: Array) -> str:
        if name not in self._values:
            self._values[name] = self._graph.weight(self._prefix + name, value)
        return self._values[name]


def add_classifier(graph: Graph, state: dict[str, Array], pixels: str) -> str:
    """Add the network from pixels [n, 3, 260, 260] to class logits [n, 1000]."""
    classifier = Classifier(graph, state)
    return classifier.logits(classifier.pooled(classifier.maps(pixels)))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """TensorFlow's "same": what is missing before and after, the odd pixel at the end, and the
    size that comes out."""
    out_size = -(-size // stride)
    padding = max((out_size - 1) * stride + kernel - size, 0)
    return padding // 2, padding - padding // 2, out_size


def folded(state: dict[str, Array], conv: str, norm: str) -> tuple[Array, Array]:
    """A convolution's weight and bias with its batch normalisation in them."""
    gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
    weight = state[f"{conv}.weight"] * gain[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return weight.astype(np.float32), bias.astype(np.float32)


def _last_block(state: dict[str, Array]) -> int:
    return max(int(n.split(".")[1]) for n in state if n.startswith("_blocks."))
