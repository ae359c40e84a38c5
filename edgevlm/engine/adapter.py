"""A LoRA as every runtime gets it, whatever file it came from.

The update of a linear layer y = W x is W + b a (Hu et al. 2021, arXiv:2106.09685); what PEFT
calls `lora_alpha / r`, or `/ sqrt(r)` with rsLoRA, is in `b` already. Modules have the names
that the decoder's checkpoint of Hugging Face gives them, from `layers.` on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

# The linear modules of a decoder layer that an adapter may change.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """`a` [rank, in_features] and `b` [out_features, rank], float32, finite."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True, eq=False, slots=True)
class Lora:
    """One adapter, checked.

    `decoder` maps `layers.{i}.self_attn.q_proj` and its like to their updates, `vision` the
    modules of the vision tower and of what joins it to the decoder. `digest` is the SHA-256, in
    hex, of names, shapes and numbers: equal digests are equal adapters.
    """

    name: str
    digest: str
    decoder: Mapping[str, LowRank]
    vision: Mapping[str, LowRank]

    @property
    def n_bytes(self) -> int:
        """Of all matrices in float32."""
        parts = (*self.decoder.values(), *self.vision.values())
        return sum(part.a.nbytes + part.b.nbytes for part in parts)


class LoadedAdapter(Protocol):
    """An adapter in the memory of one language model, for any number of its contexts.

    `name` and `digest` are those of its `Lora`, whose matrices it holds in the runtime's own form
    and in no other.
    """

    name: str
    digest: str

    def close(self) -> None:
        """Let its memory go once no context uses it any more."""


# Which adapters a context adds, times which factors. Empty is the base, bit for bit.
Adapters: TypeAlias = Mapping[LoadedAdapter, float]
