"""The decoder as torch sees it: the deployed 4-bit weights, dequantised, frozen, with a LoRA.

Training on the dequantised weights means that the adapter learns around their rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from weights import token_embeddings

from edgevlm.models.gguf import GgufFile

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 30, 576, 9, 3, 1536, 49152
HEAD = WIDTH // HEADS

# GGUF's name, transformers' name and the shape of every projection of a layer.
PROJECTIONS = {
    "q": ("attn_q", "self_attn.q_proj", (HEADS * HEAD, WIDTH)),
    "k": ("attn_k", "self_attn.k_proj", (KV_HEADS * HEAD, WIDTH)),
    "v": ("attn_v", "self_attn.v_proj", (KV_HEADS * HEAD, WIDTH)),
    "o": ("attn_output", "self_attn.o_proj", (WIDTH, HEADS * HEAD)),
    "gate": ("ffn_gate", "mlp.gate_proj", (FEED_FORWARD, WIDTH)),
    "up": ("ffn_up", "mlp.up_proj", (FEED_FORWARD, WIDTH)),
    "down": ("ffn_down", "mlp.down_proj", (WIDTH, FEED_FORWARD)),
}


def load_decoder(gguf: GgufFile) -> LlamaForCausalLM:
    """SmolLM2-135M-Instruct in fp32, nothing of it trainable."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = {f"model.{name}": torch.from_numpy(value) for name, value in _weights(gguf)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.requires_grad_(False)
    return model.eval()


def _weights(gguf: GgufFile) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield "embed_tokens.weight", token_embeddings(gguf)
    yield "norm.weight", gguf.read_f32("output_norm.weight", (WIDTH,)).copy()
    for layer in range(LAYERS):
        for name, (source, target, shape) in PROJECTIONS.items():
            weight = _dequantised(gguf, f"blk.{layer}.{source}.weight", shape)
            if name in ("q", "k"):
                weight = _half_rotation_rows(weight)
            yield f"layers.{layer}.{target}.weight", weight
        for source, target in (("attn", "input"), ("ffn", "post_attention")):
            norm = gguf.read_f32(f"blk.{layer}.{source}_norm.weight", (WIDTH,)).copy()
            yield f"layers.{layer}.{target}_layernorm.weight", norm


def _dequantised(gguf: GgufFile, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    scales, minima, levels = gguf.read_q4_1(name, shape)
    weight = levels * scales.astype(np.float32)[..., None] + minima.astype(np.float32)[..., None]
    return weight.reshape(shape)


def _half_rotation_rows(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """From llama.cpp's row order (rotation pairs side by side) to transformers' (half apart)."""
    pairs = weight.reshape(-1, HEAD // 2, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


class LoraLinear(nn.Module):
    """y = W x + (x A) B, with alpha / rank already in B (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(
            torch.randn(base.in_features, rank, generator=generator) / math.sqrt(base.in_features)
        )
        self.b = nn.Parameter(torch.zeros(rank, base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.a) @ self.b


def add_lora(
    model: LlamaForCausalLM, targets: tuple[str, ...], rank: int, seed: int
) -> dict[str, LoraLinear]:
    """Wrap `targets` of every layer; returns the wrappers as `layers.{i}.{target}`."""
    generator = torch.Generator().manual_seed(seed)
    wrapped = {}
    for index, layer in enumerate(model.model.layers):
        for target in targets:
            parent_name, name = PROJECTIONS[target][1].split(".")
            parent = getattr(layer, parent_name)
            module = LoraLinear(getattr(parent, name), rank, generator)
            setattr(parent, name, module)
            wrapped[f"layers.{index}.{target}"] = module
    return wrapped


def save_lora(wrapped: dict[str, LoraLinear], path: Path) -> None:
    """Arrays `{name}.A` [in, rank] and `{name}.B` [rank, out], float16."""
    arrays = {}
    for name, module in wrapped.items():
        arrays[f"{name}.A"] = module.a.detach().numpy().astype(np.float16)
        arrays[f"{name}.B"] = module.b.detach().numpy().astype(np.float16)
    np.savez(path, **arrays)


def load_lora(wrapped: dict[str, LoraLinear], path: Path) -> None:
    """Take what `path` holds of each wrapper; a lower rank leaves the rest of one idle."""
    with np.load(path) as arrays, torch.no_grad():
        for name, module in wrapped.items():
            if f"{name}.A" in arrays:
                a, b = (torch.from_numpy(arrays[f"{name}.{part}"]).float() for part in "AB")
                module.a[:, : a.shape[1]] = a
                module.b.zero_()
                module.b[: b.shape[0]] = b
