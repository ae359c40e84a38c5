"""edgevlm-tiny: SmolLM2's chat layout around pictures that are 20 tokens of words each.

The vision encoder writes what it recognises as embeddings of the decoder's own words
(recipes/tiny/projector.py), so a picture's place in the prompt reads "Picture: clear a tabby
cat ...". The layout is code, not a template: it is part of how the adapter was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.engine.prompt import ImageInput, ImageSlot, Part, Prompt
from edgevlm.errors import ModelCorrupt
from edgevlm.families.base import Detail, Turn

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
BEFORE_IMAGE, AFTER_IMAGE = "Picture:", "\n"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What `preprocessor_config.json` asks for: pixels = (x / 255 - mean) / std, per channel."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def fingerprint(self) -> str:
        return f"tiny bicubic {self.height}x{self.width} mean {self.mean} std {self.std}"


class TinyFamily:
    """The `Family` of `model_type` edgevlm_tiny."""

    name = "edgevlm_tiny"

    def __init__(
        self, tokenizer: Tokenizer, preprocessing: Preprocessing, image_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        # A user who types "<|im_end|>" gets these letters, not the end of the turn.
        self._plain.encode_special_tokens = True
        self._preprocessing = preprocessing
        self._image_tokens = image_tokens
        self._turn_start = _special_id(tokenizer, TURN_START)
        self._turn_end = _special_id(tokenizer, TURN_END)
        self.stop_ids = frozenset({self._turn_end, _special_id(tokenizer, END_OF_TEXT)})

    @classmethod
    def from_folder(cls, folder: Path) -> TinyFamily:
        """Read config.json, preprocessor_config.json and tokenizer.json. Raises ModelCorrupt."""
        config = _read_json(folder / "config.json")
        preprocessor = _read_json(folder / "preprocessor_config.json")
        try:
            preprocessing = Preprocessing(
                height=int(preprocessor["size"]["height"]),
                width=int(preprocessor["size"]["width"]),
                mean=_three_numbers(preprocessor["image_mean"]),
                std=_three_numbers(preprocessor["image_std"]),
            )
            image_tokens = int(config["vision_config"]["image_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(folder, f"a setting is missing or wrong ({error})") from error
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The library raises bare Exception for a missing or broken file.
        except Exception as error:
            raise _corrupt(folder, f"tokenizer.json can't be read ({error})") from error
        return cls(tokenizer, preprocessing, image_tokens)

    def preprocess(self, pixels: NDArray[np.uint8], detail: Detail = "auto") -> ImageInput:
        """Squash RGB uint8 [H, W, 3] to the encoder's square; there are no tiles at any `detail`.

        The whole picture is kept, since what it shows may stand at its edge; a centre crop
        named no more of the tuning pictures (89 of 101 either way).
        """
        from PIL import Image

        from edgevlm.media.image import pixels_key

        wanted = self._preprocessing
        size = (wanted.width, wanted.height)
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        mean = np.array(wanted.mean, np.float32) * np.float32(255)
        std = np.array(wanted.std, np.float32) * np.float32(255)
        values = (np.asarray(resized, np.float32) - mean) / std
        fingerprint = f"{pixels_key(pixels)} {wanted.fingerprint}".encode()
        return ImageInput(
            pixel_values=np.ascontiguousarray(values.transpose(2, 0, 1)[None]),
            pixel_mask=None,
            grid=(0, 0),
            n_tokens=self._image_tokens,
            key=hashlib.sha256(fingerprint).hexdigest(),
        )

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Lay out the conversation in SmolLM2's ChatML, up to where the answer begins."""
        if not turns or turns[0].role != "system":
            turns = [Turn("system", (DEFAULT_SYSTEM,)), *turns]
        layout = _Layout(self._plain)
        for turn in turns:
            layout.special(self._turn_start)
            self._add_content(layout, turn)
            layout.special(self._turn_end)
            layout.text("\n")
        layout.special(self._turn_start)
        layout.text("assistant\n")
        return layout.prompt()

    def _add_content(self, layout: _Layout, turn: Turn) -> None:
        layout.text(f"{turn.role}\n")
        for item in turn.content:
            if isinstance(item, ImageInput):
                layout.text(BEFORE_IMAGE)
                layout.image(item)
                layout.text(AFTER_IMAGE)
            else:
                layout.text(item)


class _Layout:
    """Collects text, special tokens and pictures; text that meets is tokenised as one."""

    def __init__(self, plain: Tokenizer) -> None:
        self._plain = plain
        self._parts: list[Part] = []
        self._images: list[ImageInput] = []
        self._ids: list[int] = []
        self._text = ""

    def text(self, text: str) -> None:
        self._text += text

    def special(self, token_id: int) -> None:
        self._flush_text()
        self._ids.append(token_id)

    def image(self, image: ImageInput) -> None:
        self._flush_ids()
        self._parts.append(ImageSlot(len(self._images), 0, image.n_tokens))
        self._images.append(image)

    def prompt(self) -> Prompt:
        self._flush_ids()
        return Prompt(tuple(self._parts), tuple(self._images))

    def _flush_text(self) -> None:
        if self._text:
            self._ids += self._plain.encode(self._text, add_special_tokens=False).ids
            self._text = ""

    def _flush_ids(self) -> None:
        self._flush_text()
        if self._ids:
            self._parts.append(tuple(self._ids))
            self._ids = []


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ModelCorrupt(
            f"The tokenizer has no {token}.", hint="Fetch the model again: `edgevlm model pull`."
        )
    return int(token_id)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _corrupt(path.parent, f"{path.name} can't be read ({error})") from error
    if not isinstance(value, dict):
        raise _corrupt(path.parent, f"{path.name} is not an object")
    return value


def _three_numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        raise ValueError(f"{values!r} is not three numbers")
    return numbers


def _corrupt(folder: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"The model folder {folder} is not whole: {what}.",
        hint="Fetch it again: `edgevlm model remove edgevlm-tiny`, then `edgevlm model pull`.",
    )
