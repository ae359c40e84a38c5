"""The decoder of edgevlm-tiny: Llama on a 4-bit grid, with its adapter beside the grid.

It follows the form of mlx-vlm's architectures, so that it is loaded as they are. A picture's
embeddings come from another runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from edgevlm.runtimes.mlx_loading import without_patches

with without_patches():
    from mlx_vlm.models.base import BaseModelConfig
    from mlx_vlm.models.idefics3.config import TextConfig
    from mlx_vlm.models.idefics3.language import LanguageModel

__all__ = ["LanguageModel", "Model", "ModelConfig", "TextConfig"]


@dataclass
class ModelConfig(BaseModelConfig):  # type: ignore[misc]
    """`lora_ranks`: the adapter's rank at each module that has one, by its path."""

    text_config: Any
    model_type: str
    lora_ranks: dict[str, int] = field(default_factory=dict)


class WithLora(nn.Module):  # type: ignore[misc]
    """linear(x) + x A B, with A [in, rank] and B [rank, out], which has alpha / rank in it
    (LoRA, arXiv:2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        out_features, in_features = linear.weight.shape
        self.linear = linear
        self.lora_a = mx.zeros((in_features, rank))
        self.lora_b = mx.zeros((rank, out_features))

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + (x @ self.lora_a) @ self.lora_b


class Model(nn.Module):  # type: ignore[misc]
    """`language_model` alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config.text_config)
        modules: Mapping[str, Any] = dict(self.named_modules())
        for path, rank in config.lora_ranks.items():
            parent, _, name = path.rpartition(".")
            setattr(modules[parent], name, WithLora(modules[path], rank))
