"""Finding things: a class-agnostic detector on the frozen encoder's maps.

After CenterNet (Zhou et al. 2019, arXiv:1904.07850): on a grid of 33 x 33 a probability that a
thing's middle lies there, and its box. What three resolutions know is brought to the finest,
then mixed by separable convolutions. `Detector` is the torch module, `add_detector` the nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from classifier import Array, Maps, half
from numpy.typing import NDArray
from onnx import TensorProto
from seen import MAX_THINGS
from torch import Tensor, nn
from torch.nn import functional

from edgevlm.models.onnx_export.graph import Graph

GRID = 33
WIDTH = 64
MIXERS = 5
# Two peaks whose boxes overlap this much are one thing.
SAME_THING = 0.55
CANDIDATES = 12
# Boxes are predicted as exp(size) around the cell's middle, in shares of the picture.
TYPICAL_SIZE = 0.25

Floats = NDArray[np.float32]


class Detector(nn.Module):
    """Maps of the whole view to [n, 5, 33, 33]: the logit of a thing's middle, the middle's
    distance from the cell's in cells (x, y), and log width and height over TYPICAL_SIZE."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(48, WIDTH, 1)
        self.middle = nn.Conv2d(120, WIDTH, 1)
        self.coarse = nn.Conv2d(352, WIDTH, 1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH) for _ in range(MIXERS)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(MIXERS))
        self.hidden = nn.Conv2d(WIDTH, 2 * WIDTH, 1)
        self.out = nn.Conv2d(2 * WIDTH, 5, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.constant_(self.out.bias, 0)
        nn.init.constant_(self.out.bias[:1], -4.0)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        x = functional.interpolate(self.coarse(coarse), (17, 17)) + self.middle(middle)
        x = functional.interpolate(x, (GRID, GRID)) + self.fine(fine)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = x + pointwise(functional.relu(depthwise(x)))
        return self.out(functional.relu(self.hidden(x)))


def targets(boxes: list[Floats]) -> tuple[Tensor, Tensor, Tensor]:
    """For the boxes [k, 4] of each picture: heat [n, 33, 33], the four numbers a cell should
    predict [n, 4, 33, 33], and how much they count [n, 33, 33]."""
    n = len(boxes)
    heat = np.zeros((n, GRID, GRID), np.float32)
    numbers = np.zeros((n, 4, GRID, GRID), np.float32)
    cells = np.arange(GRID, dtype=np.float32) + 0.5
    for i, picture in enumerate(boxes):
        for x0, y0, x1, y1 in picture * GRID:
            x, y, width, height = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
            # A cell off by less than a sixth of the box still gets most of it right.
            spread_x, spread_y = (max(side / 9, 0.5) for side in (width, height))
            bump = np.exp(
                -((cells - x)[None] ** 2) / (2 * spread_x**2)
                - (cells - y)[:, None] ** 2 / (2 * spread_y**2)
            )
            row, column = min(int(y), GRID - 1), min(int(x), GRID - 1)
            bump[row, column] = 1
            nearest = bump > heat[i]
            heat[i] = np.maximum(heat[i], bump)
            values = np.stack(
                np.broadcast_arrays(
                    (x - cells)[None],
                    (y - cells)[:, None],
                    np.log(width / GRID / TYPICAL_SIZE),
                    np.log(height / GRID / TYPICAL_SIZE),
                )
            )
            numbers[i] = np.where(nearest, values, numbers[i])
    weight = heat * (heat > 0.3)
    return torch.from_numpy(heat), torch.from_numpy(numbers), torch.from_numpy(weight)


def loss(out: Tensor, heat: Tensor, numbers: Tensor, weight: Tensor) -> Tensor:
    """Focal loss of the heat with less penalty around middles, and L1 of the boxes."""
    logits = out[:, 0]
    probability = logits.sigmoid()
    peak = heat >= 1
    hit = -functional.logsigmoid(logits) * (1 - probability) ** 2
    miss = -functional.logsigmoid(-logits) * probability**2 * (1 - heat) ** 4
    count = peak.sum().clamp(min=1)
    focal = torch.where(peak, hit, miss).sum() / count
    # An offset counts as the share of the side that it is.
    side = numbers[:, 2:].exp() * TYPICAL_SIZE * GRID
    scale = torch.cat([1 / side, torch.ones_like(side)], dim=1)
    distance = ((out[:, 1:] - numbers).abs() * scale).sum(dim=1)
    return focal + (distance * weight).sum() / weight.sum().clamp(min=1)


def add_detector(graph: Graph, weights: dict[str, Array], maps: Maps) -> tuple[str, str]:
    """Add the detector and the choice of its surest peaks: boxes [n, 5, 4], shares, the most
    certain first, and the probabilities [n, 5] that there is a thing."""
    with graph.scope("detector"):
        boxes, logits = _add_choice(graph, _add_forward(graph, weights, maps))
        return boxes, graph.node("Sigmoid", logits)


def _add_forward(graph: Graph, weights: dict[str, Array], maps: Maps) -> str:
    node = graph.node

    def convolution(x: str, name: str, padding: int = 0, group: int = 1) -> str:
        weight = half(graph, f"detector.{name}.weight", weights[f"{name}.weight"])
        bias = graph.weight(f"detector.{name}.bias", weights[f"{name}.bias"])
        return node("Conv", x, weight, bias, pads=[padding] * 4, group=group)

    def enlarge(x: str, factor: int, size: int) -> str:
        # Nearest, as torch does it: the source row is floor(row * from / to).
        rows = graph.constant(np.arange(size) * factor // size)
        return node("Gather", node("Gather", x, rows, axis=2), rows, axis=3)

    x = enlarge(convolution(maps.coarse, "coarse"), 9, 17)
    x = enlarge(node("Add", x, convolution(maps.middle, "middle")), 17, GRID)
    x = node("Add", x, convolution(maps.fine, "fine"))
    for i in range(MIXERS):
        inner = node("Relu", convolution(x, f"depthwise.{i}", padding=2, group=WIDTH))
        x = node("Add", x, convolution(inner, f"pointwise.{i}"))
    return convolution(node("Relu", convolution(x, "hidden")), "out")


def _add_choice(graph: Graph, out: str) -> tuple[str, str]:
    node = graph.node

    def ints(*values: int) -> str:
        return graph.constant(list(values))

    def number(value: float) -> str:
        return graph.constant(value, np.float32)

    heat, numbers = graph.nodes("Split", out, ints(1, 4), n_outputs=2, axis=1)
    highest = node("MaxPool", heat, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    peaks = node("Where", node("Equal", heat, highest), heat, number(-20))
    logits, index = graph.nodes(
        "TopK", node("Flatten", peaks), ints(CANDIDATES), n_outputs=2, axis=1
    )
    cells = node("Transpose", node("Reshape", numbers, ints(0, 4, -1)), perm=[0, 2, 1])
    chosen = node("GatherND", cells, node("Unsqueeze", index, ints(2)), batch_dims=1)
    offset, size = graph.nodes("Split", chosen, n_outputs=2, axis=2, num_outputs=2)
    grid = np.stack(np.meshgrid(*[(np.arange(GRID) + 0.5)] * 2), axis=-1).reshape(-1, 2)
    own = node("Gather", graph.constant(grid, np.float32), index)
    centre = node("Mul", node("Add", own, offset), number(1 / GRID))
    radius = node("Mul", node("Exp", node("Min", size, number(1.5))), number(TYPICAL_SIZE / 2))
    corners = node("Concat", node("Sub", centre, radius), node("Add", centre, radius), axis=2)
    boxes = node("Clip", corners, number(0), number(1))

    # A peak is dropped where a surer one has about the same box.
    surer = np.tril(np.ones((CANDIDATES, CANDIDATES), bool), -1)
    same = node("Greater", _add_overlaps(graph, boxes), number(SAME_THING))
    repeated = node("And", same, graph.constant(surer, bool))
    repeats = node("ReduceMax", node("Cast", repeated, to=TensorProto.FLOAT), ints(2), keepdims=0)
    kept = node("Sub", logits, node("Mul", repeats, number(20)))
    objectness, order = graph.nodes("TopK", kept, ints(MAX_THINGS), n_outputs=2, axis=1)
    order = node("Unsqueeze", order, ints(2))
    return node("GatherND", boxes, order, batch_dims=1), objectness


def _add_overlaps(graph: Graph, boxes: str) -> str:
    """Intersection over union [n, k, k] of boxes [n, k, 4]."""
    node = graph.node
    low, high = graph.nodes("Split", boxes, n_outputs=2, axis=2, num_outputs=2)

    def pair(operator: str, corner: str) -> str:
        rows = node("Unsqueeze", corner, graph.constant([2]))
        columns = node("Unsqueeze", corner, graph.constant([1]))
        return node(operator, rows, columns)

    def area(sides: str) -> str:
        return node("ReduceProd", sides, graph.constant([-1]), keepdims=0)

    zero = graph.constant(0, np.float32)
    common = area(node("Max", node("Sub", pair("Min", high), pair("Max", low)), zero))
    sizes = area(node("Sub", high, low))
    rows, columns = (node("Unsqueeze", sizes, graph.constant([axis])) for axis in (2, 1))
    union = node("Sub", node("Add", rows, columns), common)
    return node("Div", common, node("Max", union, graph.constant(1e-6, np.float32)))
