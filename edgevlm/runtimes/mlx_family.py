"""Models of families that have no file in `families/`: mlx-vlm prepares their pictures, and
their own chat template, rendered in our sandbox, lays out their prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.prompt import ImageInput, ImageSlot, Part, Prompt
from edgevlm.errors import TemplateError
from edgevlm.families.base import Detail, Turn
from edgevlm.families.config_files import (
    read_chat_template,
    read_tokenizer,
    special_tokens,
    stop_ids,
)
from edgevlm.families.layout import MarkupTokenizer, images_of, render_turns
from edgevlm.families.shrink import prepare_within
from edgevlm.families.template import ChatTemplate
from edgevlm.media.image import pixels_key
from edgevlm.runtimes.mlx_own_picture import PreparedPicture, Preprocessor

# Ends of a turn that generation_config.json may not name.
_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>")
_LOW_SIDE = 448


class MlxFamily:
    """The family of an MLX folder. Raises ModelCorrupt, NotSupported, TemplateError."""

    video = None

    def __init__(self, name: str, folder: Path, preprocessor: Preprocessor) -> None:
        self.name = name
        self.tokenizer = read_tokenizer(folder)
        self.stop_ids = stop_ids(folder, self.tokenizer, _ENDS)
        self._template = ChatTemplate(read_chat_template(folder), special_tokens(folder))
        self._markup = MarkupTokenizer(self.tokenizer)
        # What the tokenizer begins every text with.
        self._begin = tuple(self.tokenizer.encode("", add_special_tokens=True).ids[:1])
        self._preprocessor = preprocessor
        self._fingerprint = _fingerprint(folder)

    def preprocess(
        self, pixels: NDArray[np.uint8], detail: Detail = "auto", budget: int | None = None
    ) -> ImageInput:
        """Prepare RGB uint8 [H, W, 3].

        `low` and a `budget` make it smaller first, which costs fewer tokens where the
        model's pictures differ in size. Raises UsageError where no size costs so little,
        NotSupported, RuntimeFailed.
        """
        longest = _LOW_SIDE if detail == "low" else None
        picture = prepare_within(pixels, self._preprocessor.prepare, longest=longest, budget=budget)
        key = hashlib.sha256(f"{pixels_key(picture.rgb)} {self._fingerprint}".encode())
        return ImageInput(
            pixel_values=np.empty((0, 3, 0, 0), np.float32),
            pixel_mask=None,
            grid=(0, 0),
            n_tokens=picture.n_tokens,
            key=key.hexdigest(),
            block=picture.block,
            prepared=picture,
        )

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Lay out the conversation, ending where the assistant's answer begins.

        Text never turns into special tokens. Raises TemplateError.
        """
        images = images_of(turns)
        laid_out = [_picture(image).lay_out(index) for index, image in enumerate(images)]
        pieces = render_turns(self._template, turns)
        parts = self._markup.encode(pieces, image_id=self._preprocessor.image_id, images=laid_out)
        return Prompt(self._begun(parts), images)

    def _begun(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        first = parts[0] if parts else ()
        if not self._begin or (not isinstance(first, ImageSlot) and first[:1] == self._begin):
            return parts
        if isinstance(first, ImageSlot):
            return (self._begin, *parts)
        return (self._begin + first, *parts[1:])


def _picture(image: ImageInput) -> PreparedPicture:
    if not isinstance(image.prepared, PreparedPicture):
        raise TemplateError(
            "A picture was prepared for another model.", hint="Prepare it with this one."
        )
    return image.prepared


def _fingerprint(folder: Path) -> str:
    """Of everything that says how a picture is prepared."""
    digest = hashlib.sha256()
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()
