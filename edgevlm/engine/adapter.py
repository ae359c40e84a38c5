"""A LoRA as every runtime gets it, whatever file it came from.

The update of a linear layer y = W x is W + b a (Hu et al. 2021, arXiv:2106.09685); what PEFT
calls `lora_alpha / r`, or `/ sqrt(r)` with rsLoRA, is in `b` already. Modules have the names
that the checkpoint of Hugging Face gives them, the decoder's from `layers.` on.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

# The linear modules of a decoder layer that an adapter may change.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

_VISION = re.compile(
    r"(?:model\.)?(?:(?P<tower>(?:(?:vision_model|vision_tower|vision_encoder|visual)\.)+)"
    r"|(?=(?:connector|multi_modal_projector|mm_projector)\.))(?P<own>.+)"
)


def vision_module(name: str) -> str | None:
    """What a `Lora` calls a module of a vision tower, or of what joins it to the decoder.

    Checkpoints have several names for the tower, here it is `vision_model`. None for a name
    from anywhere else.
    """
    match = _VISION.fullmatch(name)
    if match is None:
        return None
    return f"vision_model.{match['own']}" if match["tower"] else match["own"]


def layer_of(module: str) -> str:
    """What the names of the modules of one layer begin with, or of those beside the layers."""
    numbered = re.match(r".*?\.\d+\.", module)
    return numbered[0] if numbered else module.partition(".")[0]


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

    `decoder` maps `layers.{i}.self_attn.q_proj` and its like to their updates, `vision` what
    `vision_module` names: `vision_model.encoder.layers.{i}.self_attn.q_proj` and its like.
    `digest` is the SHA-256, in hex, of names, shapes and numbers of both: equal digests are equal
    adapters.
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
    """What an adapter changes of one part of a model, in that part's memory: of a language
    model, for any number of its contexts, or of a vision encoder.

    `name` and `digest` are those of its `Lora`, whose matrices it holds in the runtime's own form
    and in no other.
    """

    name: str
    digest: str

    def close(self) -> None:
        """Let its memory go once no context uses it any more."""


# Which adapters are added, times which factors. Empty is the base, bit for bit.
Adapters: TypeAlias = Mapping[LoadedAdapter, float]


def without_zeros(adapters: Adapters) -> Adapters:
    """A scale of 0 is as if the adapter were not there."""
    return {adapter: scale for adapter, scale in adapters.items() if scale}


def adapters_key(adapters: Adapters) -> Hashable:
    """The same for the same contents and scales, whatever their order."""
    return tuple(sorted((adapter.digest, scale) for adapter, scale in adapters.items()))
