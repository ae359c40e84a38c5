"""EfficientNet-Lite2 as ONNX nodes, straight from the checkpoint's tensors.

The architecture is read off the tensor shapes but for the strides (Tan and Le 2019,
arXiv:1905.11946; the Lite variants have ReLU6 and no squeeze-and-excitation). Batch
normalisation is folded into the convolutions. Weights are stored as fp16 and cast back in the
graph: ONNX Runtime folds the casts when it loads, so the arithmetic is fp32. (int8 weights
would halve the file; they changed the first class of 11 in 220 pictures, fp16 of none.)
"""

from __future__ import annotations

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


def half(graph: Graph, name: str, value: Array) -> str:
    """A weight stored at 16 bits and used at 32."""
    stored = graph.weight(name, value.astype(np.float16))
    return graph.node("Cast", stored, to=TensorProto.FLOAT)


def load_checkpoint(path: Path) -> dict[str, Array]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def add_classifier(graph: Graph, state: dict[str, Array], pixels: str) -> str:
    """Add the network from pixels [n, 3, 260, 260] to class logits [n, 1000]."""
    x, size = _convolution(graph, state, pixels, "_conv_stem", "_bn0", IMAGE_SIZE, stride=2)
    x = _relu6(graph, x)
    for block in range(_count_blocks(state)):
        x, size = _block(graph, state, x, f"_blocks.{block}", size, block in STRIDED_BLOCKS)
    x, _ = _convolution(graph, state, x, "_conv_head", "_bn1", size)
    pooled = graph.node("GlobalAveragePool", _relu6(graph, x))
    flat = graph.node("Flatten", pooled)
    weight = half(graph, "_fc.weight", state["_fc.weight"])
    bias = graph.weight("_fc.bias", state["_fc.bias"])
    return graph.node("Gemm", flat, weight, bias, transB=1)


def _block(
    graph: Graph, state: dict[str, Array], x: str, name: str, size: int, strided: bool
) -> tuple[str, int]:
    """One inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381)."""
    inner, channels_in = x, state[f"{name}._depthwise_conv.weight"].shape[0]
    if f"{name}._expand_conv.weight" in state:
        channels_in = state[f"{name}._expand_conv.weight"].shape[1]
        inner, _ = _convolution(graph, state, inner, f"{name}._expand_conv", f"{name}._bn0", size)
        inner = _relu6(graph, inner)
    inner, out_size = _convolution(
        graph, state, inner, f"{name}._depthwise_conv", f"{name}._bn1", size, 2 if strided else 1
    )
    inner = _relu6(graph, inner)
    projected, _ = _convolution(
        graph, state, inner, f"{name}._project_conv", f"{name}._bn2", out_size
    )
    channels_out = state[f"{name}._project_conv.weight"].shape[0]
    if not strided and channels_in == channels_out:
        projected = graph.node("Add", projected, x)
    return projected, out_size


def _convolution(
    graph: Graph,
    state: dict[str, Array],
    x: str,
    conv: str,
    norm: str,
    size: int,
    stride: int = 1,
) -> tuple[str, int]:
    weight, bias = _folded(state, conv, norm)
    kernel = weight.shape[-1]
    out_size = -(-size // stride)
    # TensorFlow's "same" padding: what is missing, the odd pixel at the end.
    padding = max((out_size - 1) * stride + kernel - size, 0)
    before, after = padding // 2, padding - padding // 2
    out = graph.node(
        "Conv",
        x,
        half(graph, f"{conv}.weight", weight),
        graph.weight(f"{conv}.bias", bias),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[before, before, after, after],
        group=weight.shape[0] if weight.shape[1] == 1 else 1,
    )
    return out, out_size


def _folded(state: dict[str, Array], conv: str, norm: str) -> tuple[Array, Array]:
    gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
    weight = state[f"{conv}.weight"] * gain[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return weight.astype(np.float32), bias.astype(np.float32)


def _relu6(graph: Graph, x: str) -> str:
    return graph.node("Clip", x, graph.constant(0, np.float32), graph.constant(6, np.float32))


def _count_blocks(state: dict[str, Array]) -> int:
    return 1 + max(int(n.split(".")[1]) for n in state if n.startswith("_blocks."))
