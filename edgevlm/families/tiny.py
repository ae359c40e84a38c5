"""edgevlm-tiny: SmolLM2's chat layout around pictures that are 102 tokens of words each.

The vision encoder writes what it recognises as embeddings of the decoder's own words
(recipes/tiny/seen.py has the slots), so a picture's place in the prompt reads "Picture: clear a
tabby cat ...". The layout is code, not a template: it is part of how the adapter was trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.engine.prompt import ImageInput, ImageSlot, Prompt
from edgevlm.errors import ModelCorrupt, TemplateError
from edgevlm.families.base import Detail, Turn, check_budget
from edgevlm.families.config_files import FETCH_AGAIN, ConfigFile, read_tokenizer
from edgevlm.families.layout import Letters, Markup, MarkupTokenizer, Piece, images_of

# SmolLM2's own, so that it chats as it learned to.
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_TURN_START, _TURN_END, _END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_MAX_SIDE = 4096
_BEFORE_IMAGE, _AFTER_IMAGE = Markup("Picture:"), Markup("\n")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What preprocessor_config.json asks for: (pixels / 255 - mean) / std, per channel."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """Raises ModelCorrupt."""
        config = ConfigFile.read(folder, "preprocessor_config.json")
        size = config.nested("size")
        height, width = size.positive("height"), size.positive("width")
        if max(height, width) > _MAX_SIDE:
            raise config.corrupt(f"resizes to {width} x {height} pixels, above {_MAX_SIDE}")
        std = config.numbers("image_std", 3, 0.5)
        if not all(std):
            raise config.corrupt("divides by a zero in 'image_std'")
        return cls(height, width, config.numbers("image_mean", 3, 0.5), std)


class TinyFamily:
    """The family of model type `edgevlm_tiny`."""

    name = "edgevlm_tiny"
    video = None

    def __init__(
        self, tokenizer: Tokenizer, preprocessing: Preprocessing, image_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(_special_id(tokenizer, t) for t in (_TURN_END, _END_OF_TEXT))
        _special_id(tokenizer, _TURN_START)
        self._markup = MarkupTokenizer(tokenizer)
        self._preprocessing = preprocessing
        self._image_tokens = image_tokens

    @classmethod
    def from_folder(cls, folder: Path) -> TinyFamily:
        """Read config.json, preprocessor_config.json and tokenizer.json. Raises ModelCorrupt."""
        config = ConfigFile.read(folder, "config.json")
        image_tokens = config.nested("vision_config").positive("image_tokens")
        return cls(read_tokenizer(folder), Preprocessing.read(folder), image_tokens)

    def preprocess(
        self, pixels: NDArray[np.uint8], detail: Detail = "auto", budget: int | None = None
    ) -> ImageInput:
        """Squash RGB uint8 [H, W, 3] to the encoder's square; there are no tiles at any `detail`.

        The whole picture is kept, since what it shows may stand at its edge; a centre crop
        named no more of the tuning pictures (89 of 101 either way). The encoder looks at the
        whole at half this size, and at parts of it in full.
        """
        from PIL import Image

        from edgevlm.media.image import pixels_key

        check_budget(budget, self._image_tokens)
        wanted = self._preprocessing
        size = (wanted.width, wanted.height)
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        mean, std = (255 * np.array(v, np.float32) for v in (wanted.mean, wanted.std))
        values = (np.asarray(resized, np.float32) - mean) / std
        fingerprint = hashlib.sha256(f"{pixels_key(pixels)} {self.name} {wanted}".encode())
        return ImageInput(
            pixel_values=np.ascontiguousarray(values.transpose(2, 0, 1)[None]),
            pixel_mask=None,
            grid=(0, 0),
            n_tokens=self._image_tokens,
            key=fingerprint.hexdigest(),
        )

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Lay out the conversation in SmolLM2's ChatML, up to where the answer begins. Raises
        TemplateError."""
        if not turns or turns[0].role != "system":
            turns = [Turn("system", (DEFAULT_SYSTEM,)), *turns]
        images = images_of(turns)
        if any(image.n_tokens != self._image_tokens for image in images):
            raise TemplateError(
                "A picture was prepared for another model.", hint="Prepare it with this one."
            )
        return Prompt(self._markup.encode(_pieces(turns)), images)


def _pieces(turns: Sequence[Turn]) -> Iterator[Piece]:
    n_images = 0
    for turn in turns:
        yield Markup(f"{_TURN_START}{turn.role}\n")
        for part in turn.content:
            if isinstance(part, str):
                yield Letters(part)
                continue
            yield _BEFORE_IMAGE
            yield ImageSlot(n_images, 0, part.n_tokens)
            yield _AFTER_IMAGE
            n_images += 1
        yield Markup(f"{_TURN_END}\n")
    yield Markup(f"{_TURN_START}assistant\n")


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ModelCorrupt(f"tokenizer.json has no {token}.", hint=FETCH_AGAIN)
    return int(token_id)
