"""Comparing, choosing and counting in ONNX graphs, in the words of the code that they mirror.

Numbers are float32 and indices int64; values broadcast as in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from edgevlm.models.onnx_export.graph import Graph


class Arithmetic:
    """Nodes of one graph by what they mean; arguments and results are value names."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return self.graph.node(op_type, *inputs, **attributes)

    def index(self, value: Any) -> str:
        return self.graph.constant(value)

    def number(self, value: float) -> str:
        return self.graph.constant(value, np.float32)

    def at_least(self, value: str, limit: float) -> str:
        return self("GreaterOrEqual", value, self.number(limit))

    def is_any(self, value: str, *wanted: int) -> str:
        """Whether an index is one of those."""
        return self.either(*(self("Equal", value, self.index(w)) for w in wanted))

    def both(self, *conditions: str) -> str:
        return self._fold("And", conditions)

    def either(self, *conditions: str) -> str:
        return self._fold("Or", conditions)

    def _fold(self, op_type: str, values: Sequence[str]) -> str:
        result, *rest = values
        for value in rest:
            result = self(op_type, result, value)
        return result

    def first_match(self, conditions: Sequence[str], values: Sequence[str]) -> str:
        """The value of the first condition that holds, and the last value where none does."""
        result = values[-1]
        for condition, value in reversed(list(zip(conditions, values[:-1], strict=True))):
            result = self("Where", condition, value, result)
        return result

    def likeliest(self, scores: str) -> tuple[str, str]:
        """The largest along the last axis, and the first index where it is."""
        top = self("ReduceMax", scores, self.index([-1]), keepdims=0)
        return top, self("ArgMax", scores, axis=-1, keepdims=0)

    def count(self, conditions: str) -> str:
        """How many of the last axis hold."""
        ones = self("Cast", conditions, to=TensorProto.INT64)
        return self("ReduceSum", ones, self.index([-1]), keepdims=0)

    def total(self, numbers: str, conditions: str) -> str:
        """The sum along the last axis of the numbers whose condition holds."""
        chosen = self("Where", conditions, numbers, self.number(0))
        return self("ReduceSum", chosen, self.index([-1]), keepdims=0)

    def along(self, values: str, axis: int) -> str:
        """A new axis of one."""
        return self("Unsqueeze", values, self.index([axis]))

    def steps_passed(self, numbers: str, edges: Sequence[float]) -> str:
        """How many of the edges each number reaches."""
        reached = [
            self("Cast", self.at_least(numbers, edge), to=TensorProto.INT64) for edge in edges
        ]
        return self._fold("Add", reached)
