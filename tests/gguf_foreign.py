"""GGUF pairs of families that have no file in `edgevlm/families/`: small random-weight models of
Qwen2.5-VL (M-RoPE) and Gemma 3 (pictures attend in both directions), and what transformers
makes of the same weights.

Names and numbers are those that llama.cpp's own converter writes for the released models; their
chat templates are the released ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgevlm.models.gguf_export.writer import TensorPlan, Value, write_gguf
from edgevlm.models.progress import Silent

PATCH, MERGE = 14, 2
GEMMA_SIDE = 56

_HIDDEN, _HEAD_DIM, _VISION_HIDDEN = 64, 16, 32
_TEXT = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_SENTENCES = (
    "What is in this picture? The picture shows a red bus on a street.",
    "And what colour is the cat? The cat is black, and it sleeps on a sofa.",
    "You are a helpful assistant. Answer in one short sentence. 12 people, 3 dogs",
)
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
# As in the released files: a token of its own, and not called a special one.
QWEN_ADDED = "<\uff5ctool_call\u00e9>"
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA_SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
_GEMMA_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""


@dataclass(frozen=True, eq=False)
class Foreign:
    """A folder with two GGUF files and nothing else, and the transformers model they hold.
    `special` gives the ids of the special tokens."""

    folder: Path
    reference: Any
    special: dict[str, int]


def make_qwen25vl(folder: Path, seed: int = 0, template: str | None = QWEN_TEMPLATE) -> Foreign:
    tokenizer = _byte_level_tokenizer()
    vocabulary = tokenizer.get_vocab()
    config = transformers.Qwen2_5_VLConfig(
        text_config=_TEXT
        | {
            "num_hidden_layers": 2,
            "vocab_size": len(vocabulary),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 2, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": _VISION_HIDDEN,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": _HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
        tie_word_embeddings=False,
    )
    reference = _randomised(transformers.Qwen2_5_VLForConditionalGeneration(config), seed)
    text, vision = {}, {}
    for name, tensor in _arrays(reference):
        if name.startswith("model.visual."):
            vision |= _split_qwen(name.removeprefix("model."), tensor)
        else:
            text[name.replace("model.language_model.", "model.")] = tensor
    _write(
        folder / "qwen-F32.gguf",
        gguf.MODEL_ARCH.QWEN2VL,
        _text_metadata("qwen2vl", len(vocabulary), 2)
        | {"qwen2vl.rope.freq_base": 1e6, "qwen2vl.rope.dimension_sections": [4, 2, 2, 0]}
        | _byte_level_metadata(tokenizer)
        | ({} if template is None else {"tokenizer.chat_template": template}),
        text,
    )
    _write(
        folder / "mmproj-qwen-F32.gguf",
        gguf.MODEL_ARCH.MMPROJ,
        _vision_metadata("qwen2.5vl_merger", 56)
        | {"clip.use_silu": True, "clip.vision.n_wa_pattern": 2},
        vision,
    )
    return Foreign(folder, reference, {name: vocabulary[name] for name in _QWEN_SPECIAL})


def make_gemma3(folder: Path, seed: int = 0, *, space_prefix: bool = False) -> Foreign:
    """`space_prefix` is for reading texts as if a space were before them, as Llama 2 does."""
    tokens, scores, types = _sentencepiece()
    special = {name: id_ for id_, name in enumerate(_GEMMA_SPECIAL)}
    config = transformers.Gemma3Config(
        text_config=_TEXT
        | {
            # Five layers with a window, and one without.
            "num_hidden_layers": 6,
            "vocab_size": len(tokens),
            "head_dim": _HEAD_DIM,
            "query_pre_attn_scalar": _HEAD_DIM,
            "sliding_window": 512,
        },
        vision_config={
            "hidden_size": _VISION_HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": GEMMA_SIDE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        image_token_id=special["<image_soft_token>"],
        boi_token_id=special["<start_of_image>"],
        eoi_token_id=special["<end_of_image>"],
    )
    reference = _randomised(transformers.Gemma3ForConditionalGeneration(config), seed)
    text, vision = {}, {}
    for name, tensor in _arrays(reference):
        # Gemma's norms multiply by one more than their weight; llama.cpp's by the weight.
        if name.endswith("norm.weight") and "vision_tower" not in name:
            tensor = tensor + 1
        if name.startswith("model.vision_tower."):
            vision[name.replace("model.vision_tower.", "vision_tower.vision_model.")] = tensor
        elif "multi_modal_projector" in name:
            vision[name.removeprefix("model.").replace("_weight", ".weight")] = tensor
        elif name != "lm_head.weight":
            text[name.replace("model.language_model.", "model.")] = tensor
    _write(
        folder / "gemma-F32.gguf",
        gguf.MODEL_ARCH.GEMMA3,
        _text_metadata("gemma3", len(tokens), 6)
        | {"gemma3.rope.freq_base": 1e6, "gemma3.attention.sliding_window": 512}
        | {"gemma3.attention.key_length": _HEAD_DIM, "gemma3.attention.value_length": _HEAD_DIM}
        | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": special["<bos>"],
            "tokenizer.ggml.eos_token_id": special["<eos>"],
            "tokenizer.ggml.unknown_token_id": special["<unk>"],
            "tokenizer.ggml.padding_token_id": special["<pad>"],
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_space_prefix": space_prefix,
            "tokenizer.chat_template": _GEMMA_TEMPLATE,
        },
        text,
    )
    _write(
        folder / "mmproj-gemma-F32.gguf",
        gguf.MODEL_ARCH.MMPROJ,
        _vision_metadata("gemma3", GEMMA_SIDE)
        | {"clip.use_gelu": True, "clip.vision.projector.scale_factor": 2},
        vision,
    )
    return Foreign(folder, reference, special)


def _text_metadata(arch: str, n_vocab: int, n_layers: int) -> dict[str, Value]:
    return {
        f"{arch}.vocab_size": n_vocab,
        f"{arch}.context_length": 2048,
        f"{arch}.embedding_length": _HIDDEN,
        f"{arch}.block_count": n_layers,
        f"{arch}.feed_forward_length": 128,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
    }


def _vision_metadata(projector: str, image_size: int) -> dict[str, Value]:
    return {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": projector,
        "clip.vision.image_size": image_size,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": _VISION_HIDDEN,
        "clip.vision.feed_forward_length": 64,
        "clip.vision.block_count": 2,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.projection_dim": _HIDDEN,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }


def _write(
    path: Path,
    arch: gguf.MODEL_ARCH,
    metadata: dict[str, Value],
    tensors: dict[str, NDArray[np.float32]],
) -> None:
    names = gguf.get_tensor_name_map(arch, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    plans = []
    for name, tensor in tensors.items():
        found = name if name.startswith("v.") else names.get_name(name, (".weight", ".bias"))
        assert found is not None, name
        plans.append(TensorPlan(found, tensor.shape, _giver(tensor), "f32"))
    clip = arch == gguf.MODEL_ARCH.MMPROJ
    arch_name = "clip" if clip else gguf.MODEL_ARCH_NAMES[arch]
    write_gguf(path, arch_name, {"general.file_type": 0} | metadata, plans, Silent())


def _giver(tensor: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    return partial(np.ascontiguousarray, tensor)


def _split_qwen(name: str, tensor: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Queries, keys and values apart, and the kernels of the two frames that a patch takes."""
    if ".qkv." in name:
        parts = np.split(tensor, 3)
        return {name.replace("qkv", part): array for part, array in zip("qkv", parts, strict=True)}
    if "patch_embed.proj" in name:
        return {"v.patch_embd.weight": tensor[:, :, 0], "v.patch_embd.weight.1": tensor[:, :, 1]}
    return {name: tensor}


def _randomised(model: Any, seed: int) -> Any:
    """Seeded weights that keep activations at about unit scale."""
    generator = torch.Generator().manual_seed(seed)
    zero_centred = "gemma" in type(model).__name__.lower()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                values = 0.1 * values
            elif "norm" in name or "ln_q" in name:
                shifted = zero_centred and "vision_tower" not in name
                values = 0.1 * values + (0 if shifted else 1)
            elif "embed_tokens" in name:
                values = values * (0.3 if zero_centred else 1.0)
            elif "position_embedding" in name:
                values = 0.5 * values
            else:
                values = values / values[0].numel() ** 0.5
            parameter.copy_(values)
    model.config._attn_implementation = "eager"
    return model.float().eval()


def _arrays(model: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, tensor in model.state_dict().items():
        yield name, tensor.numpy().astype(np.float32)


def _byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=[*_QWEN_SPECIAL, QWEN_ADDED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer


def _byte_level_metadata(tokenizer: Tokenizer) -> dict[str, Value]:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    normal = int(gguf.TokenType.NORMAL)
    kinds = dict.fromkeys(_QWEN_SPECIAL, int(gguf.TokenType.CONTROL))
    kinds[QWEN_ADDED] = int(gguf.TokenType.USER_DEFINED)
    model = json.loads(tokenizer.to_str())["model"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, normal) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": vocabulary["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
    }


def _sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types: special tokens, bytes, letters, and words that merge them."""
    kinds = gguf.TokenType
    letters = [chr(code) for code in range(33, 127)] + ["\u2581", "\n"]
    words = sorted({w.strip(".,?") for sentence in _SENTENCES for w in sentence.split()})
    pieces: list[str] = []
    for word in words:
        whole = f"\u2581{word}"
        pieces += [whole[:end] for end in range(2, len(whole) + 1)]
    pieces = list(dict.fromkeys(pieces))
    tokens = [*_GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    scores = [0.0] * (len(tokens) - len(pieces)) + [-float(i + 1) for i in range(len(pieces))]
    types = [int(kinds.CONTROL)] * len(_GEMMA_SPECIAL) + [int(kinds.BYTE)] * 256
    types[_GEMMA_SPECIAL.index("<unk>")] = int(kinds.UNKNOWN)
    types += [int(kinds.NORMAL)] * (len(tokens) - len(types))
    return tokens, scores, types
