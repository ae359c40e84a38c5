"""Hugging Face folders of families that have no file in `edgevlm/families/`: small random-weight
models of Qwen2.5-VL (M-RoPE) and LLaVA, and what transformers makes of the same weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PATCH, MERGE = 14, 2
LLAVA_SIDE = 56
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_SENTENCES = (
    "What is in this picture? The picture shows a red bus on a street.",
    "And what colour is the cat? The cat is black, and it sleeps on a sofa.",
)
_QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAVA_SPECIAL = ("<s>", "</s>", "<image>", "<pad>")
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\n"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class Foreign:
    """A folder, its transformers model, what a prompt of that one begins with, and what stands
    for a picture there."""

    folder: Path
    reference: Any
    begin: str
    picture: str

    def write(self, turns: Sequence[tuple[str, str]]) -> str:
        """(role, text) turns in the layout of the template, `{}` where a picture is."""
        if self.begin:
            written = "".join(f"{role.upper()}: {text} " for role, text in turns) + "ASSISTANT:"
        else:
            said = (f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
            written = "".join(said) + "<|im_start|>assistant\n"
        return written.replace("{}", self.picture)

    @torch.no_grad()
    def logits(
        self, text: str, pictures: Sequence[NDArray[np.uint8]], then: Sequence[int] = ()
    ) -> NDArray[np.float32]:
        """After `text`, in which every picture is one token, and `then` after each id of
        `then`: [1 + len(then), n_vocab]."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        inputs = self._pictures(pictures) if pictures else {}
        ids: list[int] = []
        counts = iter(self._counts(inputs))
        image_id = self.reference.config.image_token_id
        for id_ in tokenizer.encode(self.begin + text, add_special_tokens=False).ids:
            ids += [id_] * (next(counts) if id_ == image_id else 1)
        found = torch.tensor([[*ids, *then]])
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (found == image_id).int()
        rows = self.reference(input_ids=found, **inputs).logits[0, len(ids) - 1 :]
        return np.asarray(rows)

    def _pictures(self, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        kinds = {
            "qwen2_5_vl": transformers.Qwen2VLImageProcessorPil,
            "llava": transformers.CLIPImageProcessorPil,
        }
        processor = kinds[self.reference.config.model_type].from_pretrained(self.folder)
        images = [Image.fromarray(picture) for picture in pictures]
        return dict(processor(images=images, return_tensors="pt"))

    def _counts(self, inputs: dict[str, Any]) -> list[int]:
        if "image_grid_thw" in inputs:
            return [int(n) // MERGE**2 for n in inputs["image_grid_thw"].prod(-1)]
        return [(LLAVA_SIDE // PATCH) ** 2] * len(inputs.get("pixel_values", ()))


def make_qwen25vl(folder: Path, seed: int = 0) -> Foreign:
    tokenizer = _tokenizer(_QWEN_SPECIAL)
    vocabulary = tokenizer.get_vocab()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_TEXT | {"vocab_size": len(vocabulary), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    reference = _randomised(transformers.Qwen2_5_VLForConditionalGeneration(config), seed)
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "min_pixels": 28 * 28,
        "max_pixels": 200 * 28 * 28,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    }
    _write(folder, reference, tokenizer, _QWEN_TEMPLATE, pictures, {}, "<|im_end|>")
    return Foreign(folder, reference, "", "<|vision_start|><|image_pad|><|vision_end|>")


def make_llava(folder: Path, seed: int = 0) -> Foreign:
    tokenizer = _tokenizer(_LLAVA_SPECIAL)
    vocabulary = tokenizer.get_vocab()
    # As Llama's, every text begins with it.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            **_TEXT,
            vocab_size=len(vocabulary),
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=LLAVA_SIDE,
            patch_size=PATCH,
        ),
        image_token_id=vocabulary["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    reference = _randomised(transformers.LlavaForConditionalGeneration(config), seed)
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": LLAVA_SIDE, "width": LLAVA_SIDE},
        "size": {"shortest_edge": LLAVA_SIDE},
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    }
    processor = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    _write(folder, reference, tokenizer, _LLAVA_TEMPLATE, pictures, processor, "</s>")
    _rename(folder / "model.safetensors")
    return Foreign(folder, reference, "<s>", "<image>\n")


def _write(
    folder: Path,
    reference: Any,
    tokenizer: Tokenizer,
    template: str,
    pictures: dict[str, Any],
    processor: dict[str, Any],
    end: str,
) -> None:
    with warnings.catch_warnings():
        # Of ids beyond a small vocabulary.
        warnings.simplefilter("ignore")
        reference.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    named = {"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
    files = {
        "preprocessor_config.json": pictures,
        "processor_config.json": processor,
        "tokenizer_config.json": named,
        "generation_config.json": {"eos_token_id": tokenizer.token_to_id(end)},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _rename(weights: Path) -> None:
    """The released models' names, which transformers 5 reads but does not write."""
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})


def _randomised(model: Any, seed: int) -> Any:
    """Seeded weights that keep activations at about unit scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                values = 0.1 * values
            elif "norm" in name or "ln_q" in name:
                values = 1 + 0.1 * values
            elif "embed" not in name or "patch_embed" in name:
                values = values / values[0].numel() ** 0.5
            parameter.copy_(values)
    model.config._attn_implementation = "eager"
    return model.float().eval()


def _tokenizer(special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer
