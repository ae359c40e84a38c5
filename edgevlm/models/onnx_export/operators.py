"""The two ways to write a decoder layer's norm, attention and gate.

`StandardOperators` keeps to the ONNX standard, for any runtime; `FusedOperators`
uses the `com.microsoft` operators of ONNX Runtime, one for each.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edgevlm.models.llama import LlamaShape
from edgevlm.models.onnx_export.graph import MICROSOFT, Graph


class Operators(Protocol):
    def norm(self, x: str, skip: str | None, weight: str) -> tuple[str, str]:
        """RMS norm of `x + skip`; returns the normed value and the sum itself."""

    def attend(self, qkv: str, layer: int) -> str:
        """Attention over [B, S, (heads + 2 kv) * head_dim], rotary embedding and cache included."""

    def gate(self, gate_up: str) -> str:
        """silu(gate) * up of [B, S, 2 * intermediate]."""


def _halves(graph: Graph, gate_up: str, size: int) -> tuple[str, ...]:
    sizes = graph.constant([size, size])
    return graph.nodes("Split", gate_up, sizes, n_outputs=2, axis=-1)


def _rms_norm(graph: Graph, x: str, weight: str, epsilon: float) -> str:
    square = graph.node("Mul", x, x)
    mean = graph.node("ReduceMean", square, graph.constant([-1]), keepdims=1)
    shifted = graph.node("Add", mean, graph.constant(epsilon, np.float32))
    root = graph.node("Sqrt", shifted)
    return graph.node("Mul", graph.node("Div", x, root), weight)


class FusedOperators:
    """GroupQueryAttention takes the number of valid positions, not a mask."""

    def __init__(self, graph: Graph, config: LlamaShape, cos: str, sin: str) -> None:
        self._graph, self._config = graph, config
        self._cos, self._sin = cos, sin
        total = graph.node("Gather", graph.node("Shape", "attention_mask"), graph.constant(1))
        self._total = graph.node("Cast", total, to=6)
        valid = graph.node("ReduceSum", "attention_mask", graph.constant([1]), keepdims=0)
        last = graph.node("Sub", valid, graph.constant(1))
        self._last = graph.node("Cast", last, to=6)

    def norm(self, x: str, skip: str | None, weight: str) -> tuple[str, str]:
        if skip is None:
            return _rms_norm(self._graph, x, weight, self._config.rms_norm_eps), x
        y, _, _, total = self._graph.nodes(
            "SkipSimplifiedLayerNormalization",
            x,
            skip,
            weight,
            n_outputs=4,
            domain=MICROSOFT,
            epsilon=self._config.rms_norm_eps,
        )
        return y, total

    def attend(self, qkv: str, layer: int) -> str:
        past = f"past_key_values.{layer}"
        y = f"layers.{layer}/attention"
        self._graph.named_nodes(
            "GroupQueryAttention",
            *(qkv, "", "", f"{past}.key", f"{past}.value", self._last, self._total),
            *(self._cos, self._sin, "position_ids"),
            outputs=[y, f"present.{layer}.key", f"present.{layer}.value"],
            domain=MICROSOFT,
            num_heads=self._config.n_heads,
            kv_num_heads=self._config.n_kv_heads,
            scale=self._config.head_dim**-0.5,
            do_rotary=1,
        )
        return y

    def gate(self, gate_up: str) -> str:
        gate, up = _halves(self._graph, gate_up, self._config.intermediate_size)
        silu = self._graph.node("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)
        return self._graph.node("Mul", silu, up)


class StandardOperators:
    """Query heads that share a key head are folded into its sequence axis, not repeated."""

    def __init__(self, graph: Graph, config: LlamaShape, cos: str, sin: str) -> None:
        self._graph, self._config = graph, config
        at_positions = [graph.node("Gather", table, "position_ids") for table in (cos, sin)]
        # [B, S, head_dim / 2] -> [B, 1, S, head_dim / 2], the same for every head.
        self._cos, self._sin = (
            graph.node("Unsqueeze", table, graph.constant([1])) for table in at_positions
        )
        self._bias = self._mask_bias()

    def _mask_bias(self) -> str:
        """0 where position i may see position j, else the lowest float: [B, 1, S, T]."""
        graph = self._graph
        total = graph.node("Gather", graph.node("Shape", "attention_mask"), graph.constant(1))
        new = graph.node("Gather", graph.node("Shape", "position_ids"), graph.constant(1))
        zero, one = graph.constant(0), graph.constant(1)
        keys = graph.node("Range", zero, total, one)
        queries = graph.node("Range", graph.node("Sub", total, new), total, one)
        queries = graph.node("Unsqueeze", queries, graph.constant([1]))
        causal = graph.node("LessOrEqual", keys, queries)
        valid = graph.node("Cast", "attention_mask", to=9)
        valid = graph.node("Unsqueeze", valid, graph.constant([1, 2]))
        lowest = graph.constant(np.finfo(np.float32).min, np.float32)
        return graph.node(
            "Where", graph.node("And", causal, valid), graph.constant(0, np.float32), lowest
        )

    def norm(self, x: str, skip: str | None, weight: str) -> tuple[str, str]:
        total = x if skip is None else self._graph.node("Add", x, skip)
        return _rms_norm(self._graph, total, weight, self._config.rms_norm_eps), total

    def attend(self, qkv: str, layer: int) -> str:
        graph, config = self._graph, self._config
        heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        sizes = graph.constant([n * config.head_dim for n in heads])
        parts = graph.nodes("Split", qkv, sizes, n_outputs=3, axis=-1)
        query, key, value = (self._by_head(x, n) for x, n in zip(parts, heads, strict=True))
        key = self._with_past(self._rotate(key), f"{layer}.key")
        value = self._with_past(value, f"{layer}.value")
        scale = graph.constant(config.head_dim**-0.5, np.float32)
        query = graph.node("Mul", self._rotate(query), scale)
        scores = graph.node(
            "MatMul", self._fold(query), graph.node("Transpose", key, perm=[0, 1, 3, 2])
        )
        scores = graph.node("Add", self._unfold(scores, query), self._bias)
        shares = graph.node("Softmax", scores, axis=-1)
        mixed = self._unfold(graph.node("MatMul", self._fold(shares), value), query)
        mixed = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.node(
            "Reshape", mixed, graph.constant([0, 0, config.n_heads * config.head_dim])
        )

    def _by_head(self, x: str, n_heads: int) -> str:
        shape = self._graph.constant([0, 0, n_heads, self._config.head_dim])
        return self._graph.node(
            "Transpose", self._graph.node("Reshape", x, shape), perm=[0, 2, 1, 3]
        )

    def _rotate(self, x: str) -> str:
        graph = self._graph
        first, second = _halves(graph, x, self._config.head_dim // 2)
        turned_first = graph.node(
            "Sub", graph.node("Mul", first, self._cos), graph.node("Mul", second, self._sin)
        )
        turned_second = graph.node(
            "Add", graph.node("Mul", second, self._cos), graph.node("Mul", first, self._sin)
        )
        return graph.node("Concat", turned_first, turned_second, axis=-1)

    def _with_past(self, x: str, name: str) -> str:
        present = f"present.{name}"
        self._graph.named_nodes("Concat", f"past_key_values.{name}", x, outputs=[present], axis=2)
        return present

    def _fold(self, x: str) -> str:
        """[B, heads, S, n] -> [B, kv, heads / kv * S, n]."""
        graph = self._graph
        width = graph.node("Shape", x, start=3, end=4)
        lead = graph.constant([0, self._config.n_kv_heads, -1])
        return graph.node("Reshape", x, graph.node("Concat", lead, width, axis=0))

    def _unfold(self, x: str, like: str) -> str:
        """Back to [B, heads, S, n], S being that of `like`."""
        graph = self._graph
        length = graph.node("Shape", like, start=2, end=3)
        lead = graph.constant([0, self._config.n_heads])
        shape = graph.node("Concat", lead, length, graph.constant([-1]), axis=0)
        return graph.node("Reshape", x, shape)

    def gate(self, gate_up: str) -> str:
        graph = self._graph
        gate, up = _halves(graph, gate_up, self._config.intermediate_size)
        silu = graph.node("Mul", gate, graph.node("Sigmoid", gate))
        return graph.node("Mul", silu, up)
