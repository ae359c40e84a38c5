"""The three diagrams of `edgevlm route eval` as one PNG, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgevlm.routing.arrays import Floats
from edgevlm.routing.curves import reliability, risk_coverage
from edgevlm.routing.evaluation import Evaluation

SIDE, MARGIN, TITLE = 420, 56, 34  # pixels of a diagram's square, around it, above it
TICKS = 5
_INK, _GRID, _PAPER = "#222222", "#dddddd", "#ffffff"
_COLOURS = {
    "confidence": "#c0392b", "with the probe": "#e67e22", "mean logprob": "#2471a3",
    "entropy": "#7d3c98",
    "margin": "#b7950b", "question length": "#839192", "random": "#aaaaaa", "oracle": "#1e8449",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A curve [k] from left to right; `dots` marks its points."""

    name: str
    x: Floats
    y: Floats
    dots: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Diagram:
    """`low` to `high` are the ends of the vertical axis; the horizontal one is 0 to 1."""

    title: str
    across: str
    up: str
    lines: Sequence[Line]
    low: float = 0.0
    high: float = 1.0


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the diagrams side by side. Raises OSError."""
    diagrams = (_cost(evaluation), _risk(evaluation), _reliability(evaluation))
    sheet = Image.new("RGB", (len(diagrams) * (SIDE + 2 * MARGIN), SIDE + 2 * MARGIN + TITLE))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, 0, *sheet.size), fill=_PAPER)
    for column, diagram in enumerate(diagrams):
        _plot(pen, diagram, column * (SIDE + 2 * MARGIN) + MARGIN, MARGIN // 2 + TITLE)
    sheet.save(path)


def _cost(evaluation: Evaluation) -> Diagram:
    lines = []
    for method in evaluation.methods:
        curve = evaluation.cost_quality(method)
        lines.append(Line(method.name, curve.sent, curve.quality))
    low = np.floor(min(line.y.min() for line in lines) * 20) / 20
    title = "What sending the least sure answers gains"
    return Diagram(title, "share that is sent", "share that is right", lines, low=float(low))


def _risk(evaluation: Evaluation) -> Diagram:
    right = evaluation.table.right
    lines = [Line(m.name, *risk_coverage(m.scores, right)) for m in evaluation.methods]
    high = np.ceil((1.0 - right.mean()) * 1.5 * 20) / 20
    title = "Risk where only the surest are answered"
    return Diagram(title, "share that is answered", "share of it wrong", lines, high=float(high))


def _reliability(evaluation: Evaluation) -> Diagram:
    ends = np.array([0.0, 1.0])
    lines = [Line("", ends, ends)]
    for method in evaluation.methods:
        if method.name in ("confidence", "with the probe", "mean logprob") and (
            method.confidence is not None
        ):
            told, found, _ = reliability(method.confidence, evaluation.table.right)
            lines.append(Line(method.name, told, found, dots=True))
    return Diagram("Reliability, 15 bins of equal mass", "confidence", "share right", lines)


def _plot(pen: ImageDraw.ImageDraw, diagram: Diagram, left: int, top: int) -> None:
    font = ImageFont.load_default(13)
    pen.text((left, top - 26), diagram.title, _INK, ImageFont.load_default(15))
    for tick in range(TICKS + 1):
        share = tick / TICKS
        x, y = left + share * SIDE, top + (1 - share) * SIDE
        pen.line((x, top, x, top + SIDE), _GRID)
        pen.line((left, y, left + SIDE, y), _GRID)
        value = diagram.low + share * (diagram.high - diagram.low)
        pen.text((x, top + SIDE + 5), f"{share:.1f}", _INK, font, anchor="ma")
        pen.text((left - 6, y), f"{value:.2f}", _INK, font, anchor="rm")
    pen.text((left + SIDE / 2, top + SIDE + 22), diagram.across, _INK, font, anchor="ma")
    pen.text((left + 4, top + 4), diagram.up, _INK, font)
    for row, line in enumerate(diagram.lines):
        _curve(pen, line, diagram, left, top)
        if line.name:
            at = (left + SIDE - 8, top + SIDE - 12 - 17 * (len(diagram.lines) - 1 - row))
            pen.text(at, line.name, _COLOURS.get(line.name, _INK), font, anchor="rm")


def _curve(pen: ImageDraw.ImageDraw, line: Line, diagram: Diagram, left: int, top: int) -> None:
    share = (np.clip(line.y, diagram.low, diagram.high) - diagram.low) / (
        diagram.high - diagram.low
    )
    points = list(zip(left + line.x * SIDE, top + (1 - share) * SIDE, strict=True))
    colour = _COLOURS.get(line.name, _GRID if not line.name else _INK)
    pen.line(points, colour, width=2)
    if line.dots:
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
