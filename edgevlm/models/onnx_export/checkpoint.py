"""A decoder's weights, read from a Hugging Face folder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelCorrupt
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.llama import GROUPS, MODULES, rotary_tables
from edgevlm.models.onnx_export.graph import Graph
from edgevlm.models.onnx_export.linear import (
    FLOAT_ACTIVATIONS,
    INT8_ACTIVATIONS,
    head_int8,
    linear,
)
from edgevlm.models.onnx_export.quantize import BLOCK, quantize_blocks
from edgevlm.models.vlm_config import ModelConfig


class CheckpointDecoder:
    """Implements `DecoderWeights` for a checkpoint, at 32, 16, 8 or 4 bits.

    Below 8 bits the output head stays at 8, which costs little and decides the tokens.
    With `exact` activations are not rounded where weights have 4 bits.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, bits: int, *, exact: bool = False
    ) -> None:
        self._checkpoint, self._bits, self._exact = checkpoint, bits, exact and bits == 4
        self._tied, self._text = config.tie_word_embeddings, config.text

    def embeddings(self) -> NDArray[np.float32]:
        shape = (self._text.vocab_size, self._text.hidden_size)
        return self._checkpoint.read("model.text_model.embed_tokens.weight", shape)

    def norm(self, graph: Graph, name: str) -> str:
        tensor = f"model.text_model.{name}.weight"
        return graph.weight(
            f"{name}.weight", self._checkpoint.read(tensor, (self._text.hidden_size,))
        )

    def project(self, graph: Graph, x: str, layer: int, group: str) -> str:
        prefix = f"model.text_model.layers.{layer}"
        in_features, _ = self._text.group_size(group)
        weights, biases = [], []
        for part in GROUPS[group]:
            name, n = f"{prefix}.{MODULES[part]}", self._text.part_size(part)
            weights.append(self._checkpoint.read(f"{name}.weight", (n, in_features)))
            if f"{name}.bias" in self._checkpoint:
                biases.append(self._checkpoint.read(f"{name}.bias", (n,)))
        if biases and len(biases) != len(weights):
            raise ModelCorrupt(f"{prefix} has a bias for some parts of {group} and not for others.")
        bias = np.concatenate(biases) if biases else None
        name = f"layers.{layer}.{group}"
        level = FLOAT_ACTIVATIONS if self._exact else INT8_ACTIVATIONS
        return linear(graph, x, name, np.concatenate(weights), bias, self._bits, level)

    def logits(self, graph: Graph, x: str) -> str:
        head = "lm_head.weight"
        if self._tied or head not in self._checkpoint:
            weight = self.embeddings()
        else:
            weight = self._checkpoint.read(head, (self._text.vocab_size, self._text.hidden_size))
        width = self._text.hidden_size
        if not self._exact or width % BLOCK:
            return linear(graph, x, "lm_head", weight, bits=max(self._bits, 8))
        levels, scales = quantize_blocks(weight, 8)
        return head_int8(
            graph,
            x,
            graph.weight("lm_head.weight.levels", levels),
            graph.weight("lm_head.weight.scales", scales),
            width=width,
            n_vocab=self._text.vocab_size,
            exact=True,
        )

    def rotary(self, graph: Graph) -> tuple[str, str]:
        cos, sin = rotary_tables(self._text)
        return graph.weight("rotary.cos", cos), graph.weight("rotary.sin", sin)
