"""What lies where in the weights file of the built-in model.

The decoder's graphs ship without weights: they point into `onnx/weights.bin`, which
every user's machine writes from a GGUF file. This module is the contract between
the two: names, types, shapes and offsets follow from the sizes and the adapter alone.

Q4_1 says weight = scale * level + minimum for blocks of 32 input features, while
ONNX Runtime's fast kernels know scale * (level - 8) only. The difference is a
constant of the block, minimum + 8 * scale, times the sum of the block's inputs, so

    y = matmul_nbits(x) + (x @ inner) @ outer

is the same product: the first columns of `inner` sum the blocks, the first rows of
`outer` are those constants. A LoRA has the same form, and rides along as further
columns A and rows B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from edgevlm.models.llama import GROUPS, LlamaShape

BLOCK = 32
# Multiples of a page, so that a memory map can begin at each.
ALIGNMENT = 4096

SMOLLM2_135M = LlamaShape(
    hidden_size=576,
    intermediate_size=1536,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_length=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
)

# The rank of the adapter at `layers.{layer}.{part}`; parts without one are absent.
Ranks: TypeAlias = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Region:
    """One tensor of the weights file. `dtype` is numpy's name, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * {"uint8": 1, "float32": 4}[self.dtype]


def weights_layout(shape: LlamaShape, ranks: Ranks) -> dict[str, Region]:
    """Every tensor by name, in the order of the file.

    `embed.*` serves as token embeddings and, tied, as output head.
    """
    layout = _Layout()
    table = (shape.vocab_size, shape.hidden_size // BLOCK)
    layout.add("embed.levels", "uint8", *table, BLOCK)
    layout.add("embed.scales", "float32", *table)
    for name in ("rotary.cos", "rotary.sin"):
        layout.add(name, "float32", shape.max_length, shape.head_dim // 2)
    for in_features in sorted({shape.group_size(group)[0] for group in GROUPS}):
        layout.add(block_sums_name(in_features), "float32", in_features, in_features // BLOCK)
    for layer in range(shape.n_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layout.add(f"layers.{layer}.{norm}", "float32", shape.hidden_size)
        for group in GROUPS:
            _add_group(layout, shape, f"layers.{layer}.{group}", group_rank(ranks, layer, group))
    layout.add("norm", "float32", shape.hidden_size)
    return layout.regions


def block_sums_name(in_features: int) -> str:
    """The `inner` matrix of every group without an adapter."""
    return f"block_sums.{in_features}"


def group_rank(ranks: Ranks, layer: int, group: str) -> int:
    return sum(ranks.get(f"layers.{layer}.{part}", 0) for part in GROUPS[group])


def _add_group(layout: _Layout, shape: LlamaShape, name: str, rank: int) -> None:
    in_features, out_features = shape.group_size(name.rpartition(".")[2])
    n_blocks = in_features // BLOCK
    layout.add(f"{name}.levels", "uint8", out_features, n_blocks, BLOCK // 2)
    layout.add(f"{name}.scales", "float32", out_features, n_blocks)
    if rank:
        layout.add(f"{name}.inner", "float32", in_features, n_blocks + rank)
    layout.add(f"{name}.outer", "float32", n_blocks + rank, out_features)


class _Layout:
    def __init__(self) -> None:
        self.regions: dict[str, Region] = {}
        self._end = 0

    def add(self, name: str, dtype: str, *shape: int) -> None:
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        region = Region(dtype, shape, offset)
        self.regions[name] = region
        self._end = offset + region.n_bytes
