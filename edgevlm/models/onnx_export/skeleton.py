"""The built-in model's text graphs, without their weights.

They point into the weights file that `edgevlm.models.tiny` writes on the user's
machine, at the places that `edgevlm.models.tiny_layout` gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.models.llama import LlamaShape
from edgevlm.models.onnx_export.decoder import decoder_graph
from edgevlm.models.onnx_export.graph import Graph
from edgevlm.models.onnx_export.linear import (
    FLOAT_ACTIVATIONS,
    INT8_ACTIVATIONS,
    embedding_int8,
    head_int8,
    matmul_nbits,
)
from edgevlm.models.tiny import WEIGHTS_NAME
from edgevlm.models.tiny_layout import Ranks, block_sums_name, group_rank, weights_layout


def write_skeletons(
    shape: LlamaShape,
    ranks: Ranks,
    folder: Path,
    *,
    accuracy_level: int = FLOAT_ACTIVATIONS,
    head_accuracy_level: int = INT8_ACTIVATIONS,
    last_logits_only: bool = True,
    adapters: bool = True,
) -> None:
    """Write `embed_tokens.onnx` and `decoder_model_merged.onnx` into `folder`.

    `accuracy_level` 4 rounds activations to 8 bits, which moves 3% of the first choices
    (tests/bench/four_bit.py); 1 keeps them at 32. The head has 8-bit weights, and they no fast
    kernel at level 1: at level 4 its likeliest logits are computed again with activations as
    they are, where the other layers have them so. `adapters` adds inputs for some
    (`decoder_graph`), beside the one that is among the weights.
    """
    weights = SkeletonWeights(shape, ranks, accuracy_level, head_accuracy_level)
    graph, metadata = decoder_graph(
        shape,
        weights,
        attention="gqa",
        last_logits_only=last_logits_only,
        adapters=adapters,
    )
    metadata["edgevlm.bits"] = "4"
    graph.save(folder / "decoder_model_merged.onnx", metadata)
    graph = Graph("embed_tokens")
    ids = graph.input("input_ids", np.int64, ["batch", "sequence"])
    levels, scales = weights.table(graph)
    embeddings = embedding_int8(graph, ids, levels, scales, shape.hidden_size)
    graph.output(embeddings, "inputs_embeds", np.float32, ["batch", "sequence", shape.hidden_size])
    graph.save(folder / "embed_tokens.onnx", {"edgevlm.bits": "8"})


class SkeletonWeights:
    """Implements `DecoderWeights` with references in place of weights."""

    def __init__(
        self,
        shape: LlamaShape,
        ranks: Ranks,
        accuracy_level: int,
        head_accuracy_level: int,
    ) -> None:
        self._shape, self._ranks, self._accuracy_level = shape, ranks, accuracy_level
        self._head_accuracy_level = head_accuracy_level
        self._layout = weights_layout(shape, ranks)

    def _reference(self, graph: Graph, name: str, shape: tuple[int, ...] | None = None) -> str:
        region = self._layout[name]
        return graph.external_weight(
            name, region.dtype, shape or region.shape, WEIGHTS_NAME, region.offset
        )

    def norm(self, graph: Graph, name: str) -> str:
        return self._reference(graph, name)

    def project(self, graph: Graph, x: str, layer: int, group: str) -> str:
        name = f"layers.{layer}.{group}"
        in_features, out_features = self._shape.group_size(group)
        product = matmul_nbits(
            graph,
            x,
            self._reference(graph, f"{name}.levels"),
            self._reference(graph, f"{name}.scales"),
            in_features=in_features,
            out_features=out_features,
            bits=4,
            accuracy_level=self._accuracy_level,
        )
        rank = group_rank(self._ranks, layer, group)
        inner = self._reference(graph, f"{name}.inner" if rank else block_sums_name(in_features))
        outer = self._reference(graph, f"{name}.outer")
        correction = graph.node("MatMul", graph.node("MatMul", x, inner), outer)
        return graph.node("Add", product, correction)

    def logits(self, graph: Graph, x: str) -> str:
        levels = self._reference(graph, "embed.levels")
        scales = self._reference(graph, "embed.scales")
        if self._head_accuracy_level == INT8_ACTIVATIONS:
            return head_int8(
                graph,
                x,
                levels,
                scales,
                width=self._shape.hidden_size,
                n_vocab=self._shape.vocab_size,
                exact=self._accuracy_level == FLOAT_ACTIVATIONS,
            )
        return matmul_nbits(
            graph,
            x,
            levels,
            scales,
            in_features=self._shape.hidden_size,
            out_features=self._shape.vocab_size,
            bits=8,
            accuracy_level=self._head_accuracy_level,
        )

    def rotary(self, graph: Graph) -> tuple[str, str]:
        return self._reference(graph, "rotary.cos"), self._reference(graph, "rotary.sin")

    def table(self, graph: Graph) -> tuple[str, str]:
        """Levels [V, blocks, BLOCK] and scales [V, blocks, 1] of the token embeddings."""
        scales = self._layout["embed.scales"].shape
        return (
            self._reference(graph, "embed.levels"),
            self._reference(graph, "embed.scales", (*scales, 1)),
        )
