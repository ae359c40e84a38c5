"""The Llama decoder of SmolVLM as a torch module whose KV cache and adapters are Core ML state.

Written for conversion: every operation has a Core ML counterpart that works at 16 bits, and
how many positions are in the cache follows from the shapes of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.llama import LlamaShape, rotary_tables
from edgevlm.models.vlm_config import ModelConfig
from edgevlm.runtimes.coreml_adapter import NAMES

# `a` [rank, in_features] and `b` [rank, out_features] by the names of a layer's linear modules.
Updates: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]

PREFIX = "model.text_model"
HEAD = "lm_head.weight"
# Keeps a division by the largest of all-zero features finite; the least normal fp16 is 6e-5.
_LEAST_PEAK = 1e-4


class RMSNorm(nn.Module):
    """arXiv:1910.07467, with the features divided by their largest before they are squared:
    the residual stream passes 256, whose square is more than fp16 holds."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._root_eps = eps**0.5
        # As a tensor: `clamp` becomes an operation with an upper limit beyond fp16.
        self._least_peak = torch.tensor(_LEAST_PEAK)

    def forward(self, x: Tensor) -> Tensor:
        peak = torch.maximum(x.abs().amax(-1, keepdim=True), self._least_peak)
        x = x / peak
        eps = (self._root_eps / peak).square()
        normed: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self.weight
        return normed


class Attention(nn.Module):
    """Grouped-query attention over the keys and values of one layer."""

    def __init__(self, shape: LlamaShape, bias: bool) -> None:
        super().__init__()
        self._shape = shape
        size, head_dim = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(size, shape.n_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(size, shape.n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(size, shape.n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(shape.n_heads * head_dim, size, bias=bias)

    def project(
        self, x: Tensor, cos: Tensor, sin: Tensor, updates: Updates
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[1, S, D] to queries [1, heads, S, hd], keys and values [1, kv, S, hd]."""
        head_dim = self._shape.head_dim
        q, k, v = (
            adapted(self, name, x, updates).view(1, -1, heads, head_dim).transpose(1, 2)
            for name, heads in (
                ("q_proj", self._shape.n_heads),
                ("k_proj", self._shape.n_kv_heads),
                ("v_proj", self._shape.n_kv_heads),
            )
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, updates: Updates) -> Tensor:
        """Queries [1, heads, S, hd] on keys and values [1, kv, T, hd]: [1, S, D].

        The heads that share a key are a batch dimension of their own, so that no key is
        copied for each.
        """
        shape = self._shape
        groups = shape.n_heads // shape.n_kv_heads
        q = q.reshape(shape.n_kv_heads, groups, -1, shape.head_dim) * shape.head_dim**-0.5
        scores = q @ k.transpose(0, 1).transpose(2, 3) + mask
        mixed = scores.softmax(-1) @ v.transpose(0, 1)
        heads = mixed.reshape(1, shape.n_heads, -1, shape.head_dim).transpose(1, 2)
        return adapted(
            self, "o_proj", heads.reshape(1, -1, shape.n_heads * shape.head_dim), updates
        )


class MLP(nn.Module):
    def __init__(self, shape: LlamaShape, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=bias)

    def forward(self, x: Tensor, updates: Updates) -> Tensor:
        gate, up = (adapted(self, name, x, updates) for name in ("gate_proj", "up_proj"))
        return adapted(self, "down_proj", F.silu(gate) * up, updates)


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape, attention_bias: bool, mlp_bias: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape, attention_bias)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape, mlp_bias)


class Decoder(nn.Module):
    """`inputs_embeds` [1, S, D] and `causal_mask` [1, 1, S, T], T the positions in the cache
    with the S new ones, to logits [1, V] of the last position.

    The mask is added to the scores. Keys and values lie in two buffers
    [layers, 1, kv, context_length, hd] that become Core ML states, as do the updates of
    adapters unless `max_rank` is 0 (`edgevlm.runtimes.coreml_adapter` says how they lie).
    """

    k_cache: Tensor
    v_cache: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        shape: LlamaShape,
        context_length: int,
        max_rank: int,
        attention_bias: bool,
        mlp_bias: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(shape, attention_bias, mlp_bias) for _ in range(shape.n_layers)
        )
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        cos, sin = (torch.from_numpy(table[:context_length]) for table in rotary_tables(shape))
        self.register_buffer("cos", torch.cat([cos, cos], -1))
        self.register_buffer("sin", torch.cat([sin, sin], -1))
        cache = (shape.n_layers, 1, shape.n_kv_heads, context_length, shape.head_dim)
        self.register_buffer("k_cache", torch.zeros(cache))
        self.register_buffer("v_cache", torch.zeros(cache))
        self._adapted = NAMES if max_rank else {}
        for kind, (a, b) in self._adapted.items():
            linear = self.layers[0].get_submodule(kind)
            assert isinstance(linear, nn.Linear)
            self.register_buffer(a, torch.zeros(shape.n_layers, max_rank, linear.in_features))
            self.register_buffer(b, torch.zeros(shape.n_layers, max_rank, linear.out_features))

    def states(self) -> dict[str, Tensor]:
        """The buffers that become states."""
        names = ["k_cache", "v_cache", *(name for pair in self._adapted.values() for name in pair)]
        return {name: self.get_buffer(name) for name in names}

    def forward(self, inputs_embeds: Tensor, causal_mask: Tensor) -> Tensor:
        end = causal_mask.shape[-1]
        begin = end - inputs_embeds.shape[1]
        cos, sin = self.cos[begin:end], self.sin[begin:end]
        x = inputs_embeds
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            updates = self._updates(index)
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin, updates)
            self.k_cache[index, :, :, begin:end] = k
            self.v_cache[index, :, :, begin:end] = v
            k, v = self.k_cache[index, :, :, :end], self.v_cache[index, :, :, :end]
            x = x + layer.self_attn.attend(q, k, v, causal_mask, updates)
            x = x + layer.mlp(layer.post_attention_layernorm(x), updates)
        logits: Tensor = self.lm_head(self.norm(x[:, -1]))
        return logits

    def _updates(self, layer: int) -> Updates:
        return {
            kind.rpartition(".")[2]: (self.get_buffer(a)[layer], self.get_buffer(b)[layer])
            for kind, (a, b) in self._adapted.items()
        }


def adapted(block: nn.Module, name: str, x: Tensor, updates: Updates) -> Tensor:
    """The linear module of a block, and its update: [1, S, in_features] to [1, S, out_features]."""
    y: Tensor = block.get_submodule(name)(x)
    if name not in updates:
        return y
    a, b = updates[name]
    return y + x @ a.T @ b


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [1, heads, S, hd], the halves of hd being the two coordinates."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def load_decoder(
    checkpoint: Checkpoint, config: ModelConfig, context_length: int, max_rank: int = 0
) -> Decoder:
    """The decoder with a checkpoint's weights, float32. Raises ModelCorrupt."""
    first = f"{PREFIX}.layers.0"
    decoder = Decoder(
        config.text,
        context_length,
        max_rank,
        attention_bias=f"{first}.self_attn.q_proj.bias" in checkpoint,
        mlp_bias=f"{first}.mlp.gate_proj.bias" in checkpoint,
    )
    tied = config.tie_word_embeddings or HEAD not in checkpoint
    for name, parameter in decoder.named_parameters():
        source = f"{PREFIX}.{name}"
        if name == HEAD:
            source = f"{PREFIX}.embed_tokens.weight" if tied else HEAD
        parameter.data = torch.from_numpy(checkpoint.read(source, tuple(parameter.shape)).copy())
    return decoder.eval()
