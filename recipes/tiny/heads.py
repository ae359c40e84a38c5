"""What is said of a glimpse and of a picture: heads on the encoder's features.

`Tail` is a copy of the encoder's last blocks, trained on drawings, which the encoder has never
seen; everything before them stays the encoder's own. `Surfaces` reads a colour or material off
a small copy of the glimpse and off the tail's features. The torch modules are for training,
the `add_` functions write the same as nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from classifier import (
    BATCH_NORM_EPSILON,
    STRIDED_BLOCKS,
    Array,
    Classifier,
    folded,
    half,
    same_padding,
)
from features import SWATCH
from seen import SURFACES
from torch import Tensor, nn
from torch.nn import functional

from edgevlm.models.onnx_export.graph import Graph

FEATURES = 1280
# Channels of the colour network, of what it takes from the tail, and of what joins them.
COLOUR, FROM_TAIL, JOINED = 48, 48, 96


class Tail(nn.Module):
    """Blocks 15 to 20 and the head of EfficientNet-Lite2, batch normalisation folded.

    Middle maps [k, 120, s, s] to pooled features [k, 1280].
    """

    def __init__(self, state: dict[str, Array]) -> None:
        super().__init__()
        blocks = {int(n.split(".")[1]) for n in state if n.startswith("_blocks.")}
        self._names = [f"_blocks.{b}" for b in sorted(blocks) if b >= STRIDED_BLOCKS[-1]]
        self.expand = nn.ModuleList(
            _conv(state, f"{n}._expand_conv", f"{n}._bn0") for n in self._names
        )
        self.depth = nn.ModuleList(
            _conv(state, f"{n}._depthwise_conv", f"{n}._bn1", 1 + (n == self._names[0]))
            for n in self._names
        )
        self.project = nn.ModuleList(
            _conv(state, f"{n}._project_conv", f"{n}._bn2") for n in self._names
        )
        self.head = _conv(state, "_conv_head", "_bn1")

    def forward(self, x: Tensor) -> Tensor:
        for expand, depth, project in zip(self.expand, self.depth, self.project, strict=True):
            inner = functional.relu6(expand(x))
            kernel, stride = depth.kernel_size[0], depth.stride[0]
            before, after, _ = same_padding(inner.shape[-1], kernel, stride)
            inner = functional.relu6(depth(functional.pad(inner, (before, after) * 2)))
            projected = project(inner)
            x = x + projected if projected.shape == x.shape else projected
        return functional.relu6(self.head(x)).mean(dim=(2, 3))

    def state(self) -> dict[str, Array]:
        """Named like the checkpoint; its batch normalisation only adds."""
        state: dict[str, Array] = {}
        for i, name in enumerate(self._names):
            state |= _unfolded(self.expand[i], f"{name}._expand_conv", f"{name}._bn0")
            state |= _unfolded(self.depth[i], f"{name}._depthwise_conv", f"{name}._bn1")
            state |= _unfolded(self.project[i], f"{name}._project_conv", f"{name}._bn2")
        return state | _unfolded(self.head, "_conv_head", "_bn1")


class Surfaces(nn.Module):
    """Swatches [k, 3, 40, 40] and the tail's features [k, 1280] to logits [k, S + 1].

    Every place of the swatch votes, knowing the swatch as a whole (what is ground and what
    thing is seen only so), and learns how much its vote counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.second = nn.Conv2d(32, COLOUR, 3, stride=2, padding=1)
        self.third = nn.Conv2d(COLOUR, COLOUR, 3, padding=1)
        self.around = nn.Conv2d(COLOUR, 2 * COLOUR, SWATCH // 4, groups=COLOUR)
        self.context = nn.Conv2d(2 * COLOUR, COLOUR, 1)
        self.votes = nn.Conv2d(COLOUR, 1, 1)
        self.place = nn.Parameter(torch.zeros(1, 1, SWATCH // 4, SWATCH // 4))
        self.features = nn.Linear(FEATURES, FROM_TAIL)
        self.joined = nn.Linear(COLOUR + FROM_TAIL, JOINED)
        self.out = nn.Linear(JOINED, len(SURFACES) + 1)

    def forward(self, swatches: Tensor, features: Tensor) -> Tensor:
        x = functional.relu(self.first(swatches))
        x = functional.relu(self.second(x))
        context = self.context(functional.relu(self.around(x)))
        x = functional.relu(self.third(x) + context)
        share = (self.votes(x) + self.place).flatten(2).softmax(dim=2)
        colour = (x.flatten(2) * share).sum(dim=2)
        both = torch.cat([colour, functional.relu(self.features(features))], dim=1)
        return self.out(functional.relu(self.joined(both)))


def add_tail(graph: Graph, state: dict[str, Array], middle: str, size: int) -> str:
    """Add `Tail` for middle maps of views of `size` pixels: features [k, 1280]."""
    tail = Classifier(graph, state, prefix="tail.")
    return tail.pooled(tail.late_maps(middle, size))


def add_linear(graph: Graph, weights: dict[str, Array], name: str, x: str) -> str:
    """Add x [k, a] times the transpose of `name`.weight [b, a] plus `name`.bias: [k, b]."""
    weight = half(graph, f"{name}.weight", weights[f"{name}.weight"])
    bias = graph.weight(f"{name}.bias", weights[f"{name}.bias"])
    return graph.node("Gemm", x, weight, bias, transB=1)


def add_surfaces(graph: Graph, weights: dict[str, Array], swatches: str, features: str) -> str:
    """Add `Surfaces`; its weights are named `surfaces.` and then as in the module."""
    node = graph.node

    def convolution(x: str, name: str, stride: int = 1, pad: int = 0, group: int = 1) -> str:
        weight = half(graph, f"surfaces.{name}.weight", weights[f"surfaces.{name}.weight"])
        bias = graph.weight(f"surfaces.{name}.bias", weights[f"surfaces.{name}.bias"])
        return node("Conv", x, weight, bias, strides=[stride] * 2, pads=[pad] * 4, group=group)

    with graph.scope("surfaces"):
        x = node("Relu", convolution(swatches, "first", stride=2, pad=1))
        x = node("Relu", convolution(x, "second", stride=2, pad=1))
        around = node("Relu", convolution(x, "around", group=COLOUR))
        context = convolution(around, "context")
        x = node("Relu", node("Add", convolution(x, "third", pad=1), context))
        place = graph.weight("surfaces.place", weights["surfaces.place"])
        votes = node("Add", convolution(x, "votes"), place)
        flat = graph.constant([0, 0, -1])
        share = node("Softmax", node("Reshape", votes, flat), axis=2)
        counted = node("Mul", node("Reshape", x, flat), share)
        colour = node("ReduceSum", counted, graph.constant([2]), keepdims=0)
        known = node("Relu", add_linear(graph, weights, "surfaces.features", features))
        both = node("Concat", colour, known, axis=1)
        joined = node("Relu", add_linear(graph, weights, "surfaces.joined", both))
        return add_linear(graph, weights, "surfaces.out", joined)


def _conv(state: dict[str, Array], conv: str, norm: str, stride: int = 1) -> nn.Conv2d:
    weight, bias = folded(state, conv, norm)
    out, per_group, kernel, _ = weight.shape
    depthwise = per_group == 1
    module = nn.Conv2d(
        out if depthwise else per_group, out, kernel, stride, groups=out if depthwise else 1
    )
    module.weight.data = torch.from_numpy(weight.copy())
    module.bias.data = torch.from_numpy(bias.copy())
    return module


def _unfolded(module: nn.Conv2d, conv: str, norm: str) -> dict[str, Array]:
    n = module.out_channels
    return {
        f"{conv}.weight": module.weight.detach().numpy(),
        f"{norm}.weight": np.ones(n, np.float32),
        f"{norm}.bias": module.bias.detach().numpy(),
        f"{norm}.running_mean": np.zeros(n, np.float32),
        f"{norm}.running_var": np.full(n, 1 - BATCH_NORM_EPSILON, np.float32),
    }
