"""SmolVLM folders as transformers' own processors read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from smolvlm_factory import CHAT_TEMPLATE

from edgevlm.engine.prompt import ImageSlot, Prompt
from edgevlm.families import load_family
from edgevlm.families.base import Family

Pixels = NDArray[np.uint8]
Conversation = Sequence[tuple[str, Sequence[str | Pixels]]]

# The released geometries are 512/16/4 with 2048 and 384/14/3 with 1536: the same with
# smaller tiles, and one whose 2.2B tokenizer spells rows, columns and the global image.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "smolvlm": {"variant": "smolvlm"},
    "idefics3": {"variant": "idefics3", "image_size": 32, "patch_size": 8, "longest_edge": 128},
    "spelled": {"variant": "idefics3", "layout_tokens": False},
    "unsplit": {"variant": "smolvlm", "split": False},
    "remainder": {
        "variant": "smolvlm",
        "image_size": 48,
        "patch_size": 5,
        "scale_factor": 3,
        "longest_edge": 192,
    },
}


@dataclass
class Case:
    """A folder, our reading of it, and the reference's."""

    folder: Path
    family: Family
    reference: Any
    image_id: int


def make_case(folder: Path) -> Case:
    image_id = json.loads((folder / "config.json").read_text())["image_token_id"]
    return Case(folder, load_family(folder), reference_processor(folder), image_id)


def reference_processor(folder: Path) -> Any:
    """The processor of the folder's own model type, with Pillow for the pictures."""
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    class StillsProcessor(SmolVLMProcessor):
        """Without the video processor, which needs torchvision."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {
        "image_seq_len": json.loads((folder / "processor_config.json").read_text())[
            "image_seq_len"
        ],
        "chat_template": CHAT_TEMPLATE,
    }
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    if model_type == "idefics3":
        pictures = Idefics3ImageProcessorPil.from_pretrained(folder)
        return transformers.Idefics3Processor(pictures, tokenizer, **options)
    pictures = SmolVLMImageProcessorPil.from_pretrained(folder)
    no_video = SimpleNamespace(num_frames=1, fps=1, model_input_names=[])
    return StillsProcessor(pictures, tokenizer, no_video, **options)


def reference_inputs(
    processor: Any, conversation: Conversation, **options: Any
) -> tuple[list[int], NDArray[np.float32] | None]:
    """The reference's ids, and its tiles float32 [n_tiles, 3, H, W] if there are pictures."""
    messages = [
        {
            "role": role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in content
            ],
        }
        for role, content in conversation
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    pictures = [
        Image.fromarray(part)
        for _, content in conversation
        for part in content
        if not isinstance(part, str)
    ]
    inputs = processor(
        text=text, images=[pictures] if pictures else None, return_tensors="np", **options
    )
    tiles = inputs["pixel_values"][0] if pictures else None
    return inputs["input_ids"][0].tolist(), tiles


def ids_of(prompt: Prompt, image_id: int) -> list[int]:
    """The prompt with its slots filled by the image token, as the reference writes it."""
    ids: list[int] = []
    for part in prompt.parts:
        ids.extend([image_id] * part.count if isinstance(part, ImageSlot) else part)
    return ids
