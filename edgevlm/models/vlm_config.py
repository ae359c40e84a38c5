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
# The numbers come from a file that anyone may have written.
_LARGEST, _MOST_LAYERS = 2**24, 1000


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
            vision=_vision_config(raw["vision_config"], _count(raw, "scale_factor", 2)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelCorrupt(f"{folder}/config.json is not what it should be: {error}.") from error


def _text_config(raw: Mapping[str, Any]) -> LlamaShape:
    # Defaults are those of transformers' `LlamaConfig`.
    _require(raw.get("model_type", "llama"), ("llama",), "decoder type")
    _require(raw.get("hidden_act", "silu"), ("silu",), "decoder activation")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    _require(rope.get("rope_type", rope.get("type", "default")), ("default",), "rotary embedding")
    hidden_size = _count(raw, "hidden_size", 4096)
    n_heads = _count(raw, "num_attention_heads", 32)
    return LlamaShape(
        hidden_size=hidden_size,
        intermediate_size=_count(raw, "intermediate_size", 11008),
        n_layers=_count(raw, "num_hidden_layers", 32, _MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=_count(raw, "num_key_value_heads", n_heads),
        head_dim=_count(raw, "head_dim", hidden_size // n_heads),
        vocab_size=_count(raw, "vocab_size", 32000),
        max_length=_count(raw, "max_position_embeddings", 2048),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
    )


def _vision_config(raw: Mapping[str, Any], scale_factor: int) -> VisionConfig:
    gelus = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}
    activation = raw.get("hidden_act", "gelu_pytorch_tanh")
    _require(activation, tuple(gelus), "vision activation")
    return VisionConfig(
        hidden_size=_count(raw, "hidden_size", 1152),
        intermediate_size=_count(raw, "intermediate_size", 3072),
        n_layers=_count(raw, "num_hidden_layers", 12, _MOST_LAYERS),
        n_heads=_count(raw, "num_attention_heads", 16),
        n_channels=_count(raw, "num_channels", 3),
        image_size=_count(raw, "image_size", 224),
        patch_size=_count(raw, "patch_size", 32),
        layer_norm_eps=float(raw.get("layer_norm_eps", 1e-6)),
        gelu=gelus[activation],
        scale_factor=scale_factor,
    )


def _count(raw: Mapping[str, Any], name: str, default: int, most: int = _LARGEST) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}")
    return value


def _require(found: Any, known: tuple[str, ...], what: str) -> None:
    if found not in known:
        raise NotSupported(
            f"The {what} {found!r} can't be converted.", hint=f"Known: {', '.join(known)}."
        )
