"""The decoder of a SmolVLM or Idefics3 checkpoint as llama.cpp's architecture `llama`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.gguf_export.writer import TensorPlan, Value, Width, matrix_width
from edgevlm.models.llama import MODULES, LlamaShape
from edgevlm.models.vlm_config import ModelConfig
from edgevlm.runtimes.llamacpp_lora import PRODUCTS, interleave

ARCH = "llama"
_PREFIX = "model.text_model"
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def decoder_metadata(text: LlamaShape) -> dict[str, Value]:
    """The keys that llama.cpp reads of a `llama` decoder."""
    return {
        "llama.vocab_size": text.vocab_size,
        "llama.context_length": text.max_length,
        "llama.embedding_length": text.hidden_size,
        "llama.block_count": text.n_layers,
        "llama.feed_forward_length": text.intermediate_size,
        "llama.attention.head_count": text.n_heads,
        "llama.attention.head_count_kv": text.n_kv_heads,
        "llama.attention.key_length": text.head_dim,
        "llama.attention.value_length": text.head_dim,
        "llama.attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        "llama.rope.dimension_count": text.head_dim,
        "llama.rope.freq_base": text.rope_theta,
    }


def decoder_tensors(checkpoint: Checkpoint, config: ModelConfig, width: Width) -> list[TensorPlan]:
    """Every tensor of the decoder in the order in which it is written."""
    text = config.text
    embeddings = (text.vocab_size, text.hidden_size)
    plans = [_plan(checkpoint, "token_embd.weight", f"{_PREFIX}.embed_tokens", embeddings, width)]
    for layer in range(text.n_layers):
        plans += _layer(checkpoint, text, layer, width)
    plans.append(
        _plan(checkpoint, "output_norm.weight", f"{_PREFIX}.norm", (text.hidden_size,), width)
    )
    # Without a head of its own, llama.cpp takes the embeddings for it.
    if not config.tie_word_embeddings and "lm_head.weight" in checkpoint:
        plans.append(_plan(checkpoint, "output.weight", "lm_head", embeddings, width))
    return plans


def _layer(checkpoint: Checkpoint, text: LlamaShape, layer: int, width: Width) -> list[TensorPlan]:
    source, target = f"{_PREFIX}.layers.{layer}", f"blk.{layer}"
    plans = [
        _plan(checkpoint, f"{target}.{name}.weight", f"{source}.{norm}", (text.hidden_size,), width)
        for name, norm in _NORMS.items()
    ]
    for part, module in MODULES.items():
        shape = (text.part_size(part), _in_features(text, part))
        head_dim = text.head_dim if part in ("q", "k") else None
        name, tensor = PRODUCTS[module], f"{source}.{module}"
        plans.append(_plan(checkpoint, f"{target}.{name}.weight", tensor, shape, width, head_dim))
        if f"{tensor}.bias" in checkpoint:
            plans.append(
                _plan(checkpoint, f"{target}.{name}.bias", tensor, shape[:1], width, head_dim)
            )
    return plans


def _in_features(text: LlamaShape, part: str) -> int:
    inputs = {"o": text.n_heads * text.head_dim, "down": text.intermediate_size}
    return inputs.get(part, text.hidden_size)


def _plan(
    checkpoint: Checkpoint,
    name: str,
    source: str,
    shape: tuple[int, ...],
    width: Width,
    head_dim: int | None = None,
) -> TensorPlan:
    """`head_dim` of a product whose rows are interleaved."""
    tensor = f"{source}.{name.rpartition('.')[2]}"
    checkpoint.check(tensor, shape)
    return TensorPlan(
        name, shape, _reader(checkpoint, tensor, shape, head_dim), matrix_width(shape, width)
    )


def _reader(
    checkpoint: Checkpoint, tensor: str, shape: tuple[int, ...], head_dim: int | None
) -> Callable[[], NDArray[np.float32]]:
    def read() -> NDArray[np.float32]:
        values = checkpoint.read(tensor, shape)
        return values if head_dim is None else interleave(values, head_dim)

    return read
