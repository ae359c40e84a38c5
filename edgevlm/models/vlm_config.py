"""The numbers of a SmolVLM / Idefics3 `config.json` that shape its graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.llama import LlamaShape

MODEL_TYPES = ("smolvlm", "idefics3")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A SigLIP tower with its pixel shuffle. Defaults are those of `Idefics3VisionConfig`."""

    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_channels: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    gelu: str
    scale_factor: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    text: LlamaShape
    vision: VisionConfig
    tie_word_embeddings: bool


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json`. Raises ModelCorrupt or NotSupported."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{folder} has no readable config.json.") from error
    if not isinstance(raw, dict):
        raise ModelCorrupt(f"{folder}/config.json is not a JSON object.")
    if raw.get("model_type") not in MODEL_TYPES:
        raise NotSupported(
            f"Models of type {raw.get('model_type')!r} can't be converted.",
            hint=f"Types that can: {', '.join(MODEL_TYPES)}.",
        )
    try:
        return ModelConfig(
            text=_text_config(raw["text_config"]),
            vision=_vision_config(raw["vision_config"], int(raw.get("scale_factor", 2))),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelCorrupt(f"{folder}/config.json lacks a part: {error}.") from error


def _text_config(raw: Mapping[str, Any]) -> LlamaShape:
    # Defaults are those of transformers' `Idefics3Config` and `LlamaConfig`.
    _require(raw.get("model_type", "llama"), ("llama",), "decoder type")
    _require(raw.get("hidden_act", "silu"), ("silu",), "decoder activation")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    _require(rope.get("rope_type", rope.get("type", "default")), ("default",), "rotary embedding")
    hidden_size = int(raw.get("hidden_size", 4096))
    n_heads = int(raw.get("num_attention_heads", 32))
    return LlamaShape(
        hidden_size=hidden_size,
        intermediate_size=int(raw.get("intermediate_size", 11008)),
        n_layers=int(raw.get("num_hidden_layers", 32)),
        n_heads=n_heads,
        n_kv_heads=int(raw.get("num_key_value_heads") or n_heads),
        head_dim=int(raw.get("head_dim") or hidden_size // n_heads),
        vocab_size=int(raw.get("vocab_size", 32000)),
        max_length=int(raw.get("max_position_embeddings", 2048)),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
    )


def _vision_config(raw: Mapping[str, Any], scale_factor: int) -> VisionConfig:
    gelus = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}
    activation = raw.get("hidden_act", "gelu_pytorch_tanh")
    _require(activation, tuple(gelus), "vision activation")
    return VisionConfig(
        hidden_size=int(raw.get("hidden_size", 1152)),
        intermediate_size=int(raw.get("intermediate_size", 3072)),
        n_layers=int(raw.get("num_hidden_layers", 12)),
        n_heads=int(raw.get("num_attention_heads", 16)),
        n_channels=int(raw.get("num_channels", 3)),
        image_size=int(raw.get("image_size", 224)),
        patch_size=int(raw.get("patch_size", 32)),
        layer_norm_eps=float(raw.get("layer_norm_eps", 1e-6)),
        gelu=gelus[activation],
        scale_factor=scale_factor,
    )


def _require(found: Any, known: tuple[str, ...], what: str) -> None:
    if found not in known:
        raise NotSupported(
            f"The {what} {found!r} can't be converted.", hint=f"Known: {', '.join(known)}."
        )
