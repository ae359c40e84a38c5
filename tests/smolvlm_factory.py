"""SmolVLM folders made from nothing: real file layout, a tiny tokenizer, seeded weights.

`make_processor_files` writes what a processor reads; `make_random_model` adds weights that
transformers can load. The files follow the released repositories (SmolVLM: model type
`idefics3`; SmolVLM2: `smolvlm`), the numbers are small.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken as Added
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

Variant = Literal["smolvlm", "idefics3"]

# What the released models carry in chat_template.jinja: a colon without a space where a
# turn begins with a picture, every turn closed by <end_of_utterance> and a newline.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_CLASSES = {
    "smolvlm": ("SmolVLMForConditionalGeneration", "SmolVLMProcessor", "SmolVLMImageProcessor"),
    "idefics3": ("Idefics3ForConditionalGeneration", "Idefics3Processor", "Idefics3ImageProcessor"),
}

_SENTENCES = (
    "User: What is in this picture? Assistant: The picture shows a red bus on a street.",
    "User: And what colour is the cat? Assistant: The cat is black, and it sleeps on a sofa.",
    "System: You are a helpful assistant. Answer in one short sentence.",
    "User: Describe this image. Assistant: A cup of coffee stands on a wooden table.",
    "Compare the first image with the second one: which of them shows more people?",
    "There are 12 people, 3 dogs and 405 windows in the photograph of 1987.\n\nNext line.",
    "image row col global img fake token around end of utterance start",
)


@dataclass(frozen=True)
class Dims:
    """Sizes of a random-weight model: the decoder's, then the vision tower's."""

    layers: int = 2
    hidden: int = 64
    intermediate: int = 128
    heads: int = 4
    kv_heads: int = 2
    vision_layers: int = 2
    vision_hidden: int = 32
    vision_intermediate: int = 64
    vision_heads: int = 2


def make_processor_files(
    folder: Path,
    *,
    variant: Variant = "smolvlm",
    image_size: int = 64,
    patch_size: int = 8,
    scale_factor: int = 4,
    longest_edge: int = 256,
    split: bool = True,
    layout_tokens: bool = True,
    dims: Dims | None = None,
) -> Path:
    """Write every configuration file of a model folder, and return the folder.

    `layout_tokens=False` leaves `<row_1_col_1>` and `<global-img>` out of the vocabulary,
    as in the 2.2B SmolVLM, whose tokenizer spells them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _, processor, image_processor = _CLASSES[variant]
    tokenizer = _tokenizer(layout_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    image_seq_len = (image_size // patch_size) ** 2 // scale_factor**2
    files: dict[str, dict[str, Any]] = {
        "config.json": _config(
            tokenizer, variant, image_size, patch_size, scale_factor, longest_edge, dims or Dims()
        ),
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_image_splitting": split,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": image_processor,
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": image_size},
            "processor_class": processor,
            "resample": 1,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": longest_edge},
        },
        "processor_config.json": {"image_seq_len": image_seq_len, "processor_class": processor},
        "tokenizer_config.json": _tokenizer_config(tokenizer, processor),
        "special_tokens_map.json": {
            "additional_special_tokens": _NAMED_SPECIALS,
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
            "eos_token_id": tokenizer.token_to_id("<end_of_utterance>"),
            "pad_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def make_random_model(
    folder: Path, *, seed: int = 0, dims: Dims | None = None, **processor: Any
) -> Path:
    """`make_processor_files`, and a `model.safetensors` (float32) of seeded random weights.

    Activations keep unit scale and the logits a standard deviation of about 3, so that a
    greedy choice is clear and a wrong picture, position or cache shows in it.
    Load it with `load_reference`.
    """
    import torch
    import transformers

    make_processor_files(folder, dims=dims, **processor)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0])(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter.shape, generator))
    with tempfile.TemporaryDirectory() as saved:
        # Only the weights: the configuration stays as the released repositories write it.
        model.save_pretrained(saved)
        (Path(saved) / "model.safetensors").replace(folder / "model.safetensors")
    return folder


def load_reference(folder: Path) -> Any:
    """The transformers model of the folder: float32, eager attention, evaluation mode."""
    import torch
    import transformers

    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    return (
        getattr(transformers, name)
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )


def _random(name: str, shape: Any, generator: Any) -> Any:
    import torch

    values = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * values
    if "norm" in name:
        return 1 + 0.1 * values
    if "embed_tokens" in name:
        return values
    if "position_embedding" in name:
        return 0.5 * values
    fan_in = values[0].numel()
    gain = 3.0 if name.startswith("lm_head") else 1.0
    return values * gain / fan_in**0.5


_NAMED_SPECIALS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]


def _tokenizer(layout_tokens: bool) -> Tokenizer:
    """Byte-level BPE with digits apart, as SmolLM2's, and SmolVLM's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    layout = ["<global-img>"]
    layout += [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    specials = layout if layout_tokens else []
    specials = [*specials, "<fake_token_around_image>", "<image>"]
    specials += [f"<|reserved_special_token_{i}|>" for i in range(4)]
    specials += ["<end_of_utterance>"]
    tokenizer.add_special_tokens([Added(s, special=True, normalized=False) for s in specials])
    return tokenizer


def _tokenizer_config(tokenizer: Tokenizer, processor: str) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "additional_special_tokens": _NAMED_SPECIALS,
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<end_of_utterance>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "processor_class": processor,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": "left",
        "unk_token": "<|endoftext|>",
    }


def _config(
    tokenizer: Tokenizer,
    variant: Variant,
    image_size: int,
    patch_size: int,
    scale_factor: int,
    longest_edge: int,
    dims: Dims,
) -> dict[str, Any]:
    n_vocab = tokenizer.get_vocab_size()
    pad = tokenizer.token_to_id("<|im_end|>")
    return {
        "architectures": [_CLASSES[variant][0]],
        "image_token_id": tokenizer.token_to_id("<image>"),
        "model_type": variant,
        "pad_token_id": pad,
        "scale_factor": scale_factor,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
            "eos_token_id": tokenizer.token_to_id("<end_of_utterance>"),
            "head_dim": dims.hidden // dims.heads,
            "hidden_act": "silu",
            "hidden_size": dims.hidden,
            "intermediate_size": dims.intermediate,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": dims.heads,
            "num_hidden_layers": dims.layers,
            "num_key_value_heads": dims.kv_heads,
            "pad_token_id": pad,
            "pixel_shuffle_factor": scale_factor,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "vocab_size": n_vocab,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": dims.vision_hidden,
            "image_size": image_size,
            "intermediate_size": dims.vision_intermediate,
            "layer_norm_eps": 1e-06,
            "max_image_size": {"longest_edge": image_size},
            "model_type": f"{variant}_vision",
            "num_attention_heads": dims.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": dims.vision_layers,
            "patch_size": patch_size,
            "size": {"longest_edge": longest_edge},
        },
        "vocab_size": n_vocab,
    }
