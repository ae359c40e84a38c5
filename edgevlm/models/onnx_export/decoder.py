"""The Llama decoder of SmolVLM as an ONNX graph.

`attention="plain"` uses standard operators only. `attention="gqa"` uses ONNX
Runtime's fused ones: GroupQueryAttention applies the rotary embedding, the causal
mask and the KV cache, and takes one preallocated buffer as past and present.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from edgevlm.models.llama import LlamaShape
from edgevlm.models.onnx_export.graph import Graph, Shape
from edgevlm.models.onnx_export.linear import low_rank
from edgevlm.models.onnx_export.operators import FusedOperators, Operators, StandardOperators

Attention = Literal["plain", "gqa"]

# What adapters call the products of a layer, computed as one or alone.
ADAPTED = {
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}


class DecoderWeights(Protocol):
    """Where a decoder's weights come from and how its products are computed."""

    def norm(self, graph: Graph, name: str) -> str:
        """The initializer float32 [hidden] of the norm `name`."""

    def project(self, graph: Graph, x: str, layer: int, group: str) -> str:
        """The product of `x` with the group `qkv`, `o`, `gate_up` or `down` of a layer.

        The parts of a group lie one after the other in the output features.
        """

    def logits(self, graph: Graph, x: str) -> str: ...

    def rotary(self, graph: Graph) -> tuple[str, str]:
        """Initializers of cos and sin, float32 [max_length, head_dim / 2]."""


def decoder_graph(
    config: LlamaShape,
    weights: DecoderWeights,
    *,
    attention: Attention,
    last_logits_only: bool,
    adapters: bool,
) -> tuple[Graph, dict[str, str]]:
    """Build the merged decoder; returns the graph and its metadata for the runtime.

    `inputs_embeds` float32 [B, S, D], `attention_mask` int64 [B, T] with T = past + S,
    `position_ids` int64 [B, S], past and present float32 [B, kv, length, head_dim]:
    `logits` float32 [B, S, V], or [B, 1, V] with `last_logits_only`. With "gqa"
    several sequences are padded on the right and prefilled from an empty past.

    With `adapters` every product of a layer takes an update of low rank: a pair of inputs
    `lora.layers.{i}.{name}.a|b`, the names as in `ADAPTED`, which may be left out (`low_rank`).
    """
    graph = Graph("decoder_model_merged")
    x = graph.input("inputs_embeds", np.float32, ["batch", "sequence", config.hidden_size])
    graph.input("attention_mask", np.int64, ["batch", "total"])
    graph.input("position_ids", np.int64, ["batch", "sequence"])
    for layer in range(config.n_layers):
        for part in ("key", "value"):
            shape: Shape = ["batch", config.n_kv_heads, "past", config.head_dim]
            graph.input(f"past_key_values.{layer}.{part}", np.float32, shape)
    dialect = FusedOperators if attention == "gqa" else StandardOperators
    operators = dialect(graph, config, *weights.rotary(graph))
    logits = _layers(graph, x, config, weights, operators, last_logits_only, adapters)
    rows: int | str = 1 if last_logits_only else "sequence"
    graph.output(logits, "logits", np.float32, ["batch", rows, config.vocab_size])
    for layer in range(config.n_layers):
        for part in ("key", "value"):
            name = f"present.{layer}.{part}"
            shape = ["batch", config.n_kv_heads, "total", config.head_dim]
            graph.output(name, name, np.float32, shape)
    return graph, {
        "edgevlm.attention": attention,
        "edgevlm.shared_kv": "1" if attention == "gqa" else "0",
        "edgevlm.max_length": str(config.max_length),
        "edgevlm.logits": "last" if last_logits_only else "all",
    }


def _layers(
    graph: Graph,
    x: str,
    config: LlamaShape,
    weights: DecoderWeights,
    operators: Operators,
    last_logits_only: bool,
    adapters: bool,
) -> str:
    def project(x: str, layer: int, group: str) -> str:
        y = weights.project(graph, x, layer, group)
        if not adapters:
            return y
        return low_rank(graph, x, y, f"layers.{layer}.{ADAPTED[group]}", *config.group_size(group))

    skip: str | None = None
    for layer in range(config.n_layers):
        with graph.scope(f"layers.{layer}"):
            y, x = operators.norm(x, skip, weights.norm(graph, f"layers.{layer}.input_layernorm"))
            y = operators.attend(project(y, layer, "qkv"), layer)
            skip = project(y, layer, "o")
            norm = weights.norm(graph, f"layers.{layer}.post_attention_layernorm")
            y, x = operators.norm(x, skip, norm)
            y = operators.gate(project(y, layer, "gate_up"))
            skip = project(y, layer, "down")
    if last_logits_only:
        last = graph.constant([-1])
        x = graph.node("Gather", x, last, axis=1)
        skip = skip and graph.node("Gather", skip, last, axis=1)
    y, _ = operators.norm(x, skip, weights.norm(graph, "norm"))
    return weights.logits(graph, y)
