"""The decoder as torch sees it: the deployed weights, dequantised and frozen.

An adapter that is trained on them learns around their rounding errors, which is what QLoRA is
about (Dettmers et al. 2023, arXiv:2305.14314).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.gguf import GgufFile
from edgevlm.models.tiny import half_rotation_order
from edgevlm.runtimes.llamacpp_lora import product_tensor

# Of a file of llama.cpp, and of a checkpoint.
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def load_decoder(files: ModelFiles) -> LlamaForCausalLM:
    """The model's decoder in float32, nothing of it trainable, with the adapter that belongs to
    the model itself merged in.

    Raises NotSupported for files that can't be trained on, and ModelCorrupt.
    """
    path = files.roles["decoder"]
    if path.suffix != ".gguf":
        raise NotSupported(
            f"{files.name} can't be trained on as it is: its decoder is no GGUF file.",
            hint="Make one with `edgevlm model convert MODEL --runtime llamacpp`.",
        )
    try:
        gguf = GgufFile(path)
        with torch.device("meta"):  # no time to fill with what is about to be replaced
            model = LlamaForCausalLM(_config(gguf, files.name))
        state = dict(_weights(gguf, model.config, files.roles.get("lora")))
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ModelCorrupt(f"{path.name} is no sound decoder: {error}.") from error
    model.requires_grad_(False)
    return model


def _config(gguf: GgufFile, name: str) -> LlamaConfig:
    if (architecture := _value(gguf, "general.architecture")) != "llama":
        raise _not_supported(name, f"its decoder is of the architecture {architecture!r}")
    if _value(gguf, "split.count", 1) != 1:
        raise _not_supported(name, "its decoder is in several files")
    scaled = _value(gguf, "llama.rope.scaling.type", "none") != "none"
    if scaled or "rope_freqs.weight" in gguf.tensors:
        raise _not_supported(name, "its rotary embedding is scaled")
    hidden, heads = (
        int(_value(gguf, f"llama.{key}")) for key in ("embedding_length", "attention.head_count")
    )
    return LlamaConfig(
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=int(_value(gguf, "llama.feed_forward_length")),
        num_hidden_layers=int(_value(gguf, "llama.block_count")),
        num_attention_heads=heads,
        num_key_value_heads=int(_value(gguf, "llama.attention.head_count_kv", heads)),
        head_dim=int(_value(gguf, "llama.attention.key_length", hidden // heads)),
        max_position_embeddings=int(_value(gguf, "llama.context_length")),
        rms_norm_eps=float(_value(gguf, "llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(_value(gguf, "llama.rope.freq_base", 10000.0)),
        },
        tie_word_embeddings="output.weight" not in gguf.tensors,
        use_cache=False,
    )


def _weights(
    gguf: GgufFile, config: LlamaConfig, lora: Path | None
) -> Iterator[tuple[str, torch.Tensor]]:
    updates = {} if lora is None else _updates(GgufFile(lora))
    names = _names(config)
    if strange := (gguf.tensors.keys() | updates.keys()) - names.keys():
        raise NotSupported(
            f"The decoder has {min(strange)}, which training does not know.",
            hint="Train another model.",
        )
    for tensor in gguf.tensors:
        weight = _read(gguf, tensor)
        if tensor in updates:
            weight += updates[tensor]
        if names[tensor].endswith(("q_proj.weight", "k_proj.weight")):
            weight = weight[half_rotation_order(len(weight), int(config.head_dim or 0))]
        yield names[tensor], torch.from_numpy(weight)


def _names(config: LlamaConfig) -> dict[str, str]:
    """llama.cpp's names of all tensors that a decoder may have, to transformers'."""
    names = dict(_OUTSIDE)
    for layer in range(config.num_hidden_layers):
        for module in (f"layers.{layer}.{part}" for part in (*ATTENTION, *FEED_FORWARD)):
            names[str(product_tensor(module))] = f"model.{module}.weight"
        for written, norm in _NORMS.items():
            names[f"blk.{layer}.{written}.weight"] = f"model.layers.{layer}.{norm}.weight"
    return names


def _read(gguf: GgufFile, name: str) -> NDArray[np.float32]:
    """A tensor in float32, writable."""
    type_ = GGMLQuantizationType[gguf.tensors[name].type.name]
    return np.array(dequantize(gguf.read_bytes(name), type_), np.float32)


def _updates(lora: GgufFile) -> dict[str, NDArray[np.float32]]:
    """What the adapter of the model itself adds to each tensor [out, in]."""
    alpha = float(_value(lora, "adapter.lora.alpha", 0.0))
    updates = {}
    for tensor in lora.tensors:
        if tensor.endswith(".lora_a"):
            a, b = _read(lora, tensor), _read(lora, f"{tensor[:-1]}b")
            scale = alpha / len(a) if alpha else 1.0
            updates[tensor.removesuffix(".lora_a")] = scale * (b @ a)
    return updates


def _value(gguf: GgufFile, key: str, default: Any = None) -> Any:
    if key not in gguf.metadata and default is None:
        raise KeyError(key)
    return gguf.metadata.get(key, default)


def _not_supported(name: str, why: str) -> NotSupported:
    return NotSupported(
        f"{name} can't be trained on: {why}.",
        hint="Models of the SmolVLM family and edgevlm-tiny can.",
    )
