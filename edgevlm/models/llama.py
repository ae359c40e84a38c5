"""The numbers that shape a Llama decoder, and its rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The products of a layer. Those of a group share their input and are computed as one,
# their output features lying one after the other.
GROUPS = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
# What a checkpoint of Hugging Face calls them.
MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama decoder; `max_length` is the longest sequence it was trained for."""

    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    rms_norm_eps: float
    rope_theta: float

    def part_size(self, part: str) -> int:
        """Output features of one product of a layer."""
        if part == "q":
            return self.n_heads * self.head_dim
        if part in ("k", "v"):
            return self.n_kv_heads * self.head_dim
        return self.intermediate_size if part in ("gate", "up") else self.hidden_size

    def group_size(self, group: str) -> tuple[int, int]:
        """(input features, output features) of one of `GROUPS`."""
        inputs = {"o": self.n_heads * self.head_dim, "down": self.intermediate_size}
        outputs = sum(self.part_size(part) for part in GROUPS[group])
        return inputs.get(group, self.hidden_size), outputs


def rotary_tables(shape: LlamaShape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin float32 [max_length, head_dim / 2] (RoFormer, arXiv:2104.09864).

    Rounded to float32 where transformers does, so that logits agree; in between in
    float64, so that every machine gives the same bytes.
    """
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float32) / np.float32(shape.head_dim)
    frequencies = 1.0 / np.power(shape.rope_theta, exponents.astype(np.float64))
    positions = np.arange(shape.max_length, dtype=np.float32)
    angles = (positions[:, None] * frequencies.astype(np.float32)).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
