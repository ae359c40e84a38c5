"""The SigLIP tower of SmolVLM with its pixel shuffle and projector as a torch module.

One whole tile and no mask: positions are constants, every shape is fixed, and each operation
is one that the Neural Engine takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.siglip import full_tile_rows
from edgevlm.models.vlm_config import VisionConfig

PREFIX = "model.vision_model"
_PROJECTION = "model.connector.modality_projection.proj.weight"
_TABLE = f"{PREFIX}.embeddings.position_embedding.weight"


class Attention(nn.Module):
    def __init__(self, size: int, n_heads: int) -> None:
        super().__init__()
        self._n_heads = n_heads
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        _, n_patches, size = x.shape
        head_dim = size // self._n_heads
        q, k, v = (
            proj(x).view(1, n_patches, self._n_heads, head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (q * head_dim**-0.5) @ k.transpose(2, 3)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, n_patches, size)
        out: Tensor = self.out_proj(mixed)
        return out


class MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self._gelu = config.gelu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self._gelu))
        return out


class Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.n_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionEncoder(nn.Module):
    """`pixel_values` [1, channels, side, side] to embeddings [1, tokens, d_model]."""

    positions: Tensor

    def __init__(self, config: VisionConfig, d_model: int) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self._factor = config.scale_factor
        self._n_per_side = config.image_size // patch
        self.patch_embedding = nn.Conv2d(config.n_channels, size, patch, stride=patch)
        self.register_buffer("positions", torch.zeros(1, self._n_per_side**2, size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.post_layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(size * config.scale_factor**2, d_model, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        features: Tensor = self.projection(self._shuffle(self.post_layernorm(x)))
        return features

    def _shuffle(self, x: Tensor) -> Tensor:
        """Fold squares of `scale_factor` patches into the features of one token."""
        factor, side, size = self._factor, self._n_per_side // self._factor, x.shape[-1]
        x = x.view(side, factor, side, factor * size).transpose(1, 2)
        return x.reshape(1, side * side, factor**2 * size)


def load_vision(checkpoint: Checkpoint, config: VisionConfig, d_model: int) -> VisionEncoder:
    """The vision encoder with a checkpoint's weights, float32. Raises ModelCorrupt."""
    encoder = VisionEncoder(config, d_model)
    for name, parameter in encoder.named_parameters():
        source = _source(name)
        parameter.data = torch.from_numpy(checkpoint.read(source, tuple(parameter.shape)).copy())
    n_per_side = config.image_size // config.patch_size
    table = checkpoint.read(_TABLE, (n_per_side**2, config.hidden_size))
    encoder.positions = torch.from_numpy(table[full_tile_rows(n_per_side)])[None]
    return encoder.eval()


def _source(name: str) -> str:
    """The tensor of a checkpoint that holds a parameter."""
    if name.startswith("projection."):
        return _PROJECTION
    part = {"patch_embedding": "embeddings", "layers": "encoder"}.get(name.partition(".")[0])
    return f"{PREFIX}.{part}.{name}" if part else f"{PREFIX}.{name}"
