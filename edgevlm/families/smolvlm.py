"""SmolVLM and SmolVLM2, and Idefics3 whose layout they share.

A picture in the prompt is a run of `<image>` tokens for each tile, with the tile's row and
column before it, a line break after each row of tiles, and the whole picture last. All
numbers and names come from the model's own files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.engine.prompt import ImageInput, ImageSlot, Prompt
from edgevlm.errors import ModelCorrupt, TemplateError
from edgevlm.families.base import Detail, Turn
from edgevlm.families.config_files import (
    FETCH_AGAIN,
    ConfigFile,
    read_chat_template,
    read_tokenizer,
    special_tokens,
    stop_ids,
)
from edgevlm.families.idefics3_image import TilingSettings, prepare
from edgevlm.families.layout import Markup, MarkupTokenizer, Piece, images_of, render_turns
from edgevlm.families.smolvlm_video import SmolVLMVideo
from edgevlm.families.template import ChatTemplate

_AROUND_IMAGE = "<fake_token_around_image>"
_GLOBAL_IMAGE = "<global-img>"
_END_OF_TURN = "<end_of_utterance>"


class SmolVLM:
    """The family of model types `idefics3` and `smolvlm`."""

    name = "smolvlm"

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        tiling: TilingSettings,
        *,
        image_id: int,
        stop_ids: frozenset[int],
        video: SmolVLMVideo | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.video = video
        self.stop_ids = stop_ids
        self._template = template
        self._tiling = tiling
        self._image_id = image_id
        self._markup = MarkupTokenizer(tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> SmolVLM:
        """Read a model folder. Raises ModelCorrupt naming what is missing or inconsistent."""
        config = ConfigFile.read(folder, "config.json")
        tokenizer = _suitable_tokenizer(folder)
        specials = special_tokens(folder)
        tiling, processor = _read_tiling(folder, config)
        sees_video = config.fields.get("model_type") == "smolvlm"
        return cls(
            tokenizer,
            ChatTemplate(read_chat_template(folder), specials),
            tiling,
            image_id=_image_id(config, tokenizer),
            stop_ids=stop_ids(folder, tokenizer, [_END_OF_TURN]),
            video=SmolVLMVideo.read(processor, tiling) if sees_video else None,
        )

    def preprocess(
        self, pixels: NDArray[np.uint8], detail: Detail = "auto", budget: int | None = None
    ) -> ImageInput:
        return prepare(pixels, self._tiling, detail, budget)

    def render(self, turns: Sequence[Turn]) -> Prompt:
        images = images_of(turns)
        laid_out = [self._lay_out(index, image) for index, image in enumerate(images)]
        pieces = render_turns(self._template, turns)
        parts = self._markup.encode(pieces, image_id=self._image_id, images=laid_out)
        return Prompt(parts, images)

    def _lay_out(self, index: int, image: ImageInput) -> list[Piece]:
        tokens = self._tiling.tokens
        rows, columns = image.grid
        if image.n_tokens != (rows * columns + 1) * tokens:
            raise TemplateError(
                "A picture was prepared for another model.", hint="Prepare it with this one."
            )
        pieces: list[Piece] = []
        for row in range(rows):
            for column in range(columns):
                pieces += [
                    Markup(f"{_AROUND_IMAGE}<row_{row + 1}_col_{column + 1}>"),
                    ImageSlot(index, (row * columns + column) * tokens, tokens),
                ]
            pieces.append(Markup("\n"))
        return [
            *pieces,
            Markup(("\n" if rows else "") + _AROUND_IMAGE + _GLOBAL_IMAGE),
            ImageSlot(index, rows * columns * tokens, tokens),
            Markup(_AROUND_IMAGE),
        ]


def _suitable_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = read_tokenizer(folder)
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word:
            raise ModelCorrupt(
                f"tokenizer.json has {token.content!r} take the spaces beside it.",
                hint="The SmolVLM family does not know such tokens: use another model.",
            )
    return tokenizer


def _read_tiling(folder: Path, config: ConfigFile) -> tuple[TilingSettings, ConfigFile]:
    """The settings of pictures, and the file that they and those of videos come from."""
    vision = config.nested("vision_config")
    tile = vision.positive("image_size")
    # The encoder ignores what is left over of a row of patches.
    patches = tile // vision.positive("patch_size")
    shuffle = config.positive("scale_factor")
    if patches == 0 or patches % shuffle:
        raise config.corrupt(f"can't join {patches} patches a side by {shuffle}")
    tokens = (patches // shuffle) ** 2
    processor = ConfigFile.read_if_there(folder, "processor_config.json")
    declared = processor.fields.get("image_seq_len", tokens)
    if declared != tokens:
        raise processor.corrupt(f"says {declared} tokens a tile, config.json gives {tokens}")
    pictures = _image_processor(folder, processor)
    return TilingSettings.read(pictures, tile, tokens), pictures


def _image_processor(folder: Path, processor: ConfigFile) -> ConfigFile:
    # transformers 5 writes it into processor_config.json, and prefers it there.
    if "image_processor" in processor.fields:
        return processor.nested("image_processor")
    return ConfigFile.read(folder, "preprocessor_config.json")


def _image_id(config: ConfigFile, tokenizer: Tokenizer) -> int:
    image_id = config.positive("image_token_id")
    added = tokenizer.get_added_tokens_decoder()
    if image_id not in added:
        raise config.corrupt(f"names token {image_id} for pictures, tokenizer.json has no such")
    if tokenizer.token_to_id(_AROUND_IMAGE) not in added:
        raise ModelCorrupt(f"tokenizer.json has no token {_AROUND_IMAGE!r}.", hint=FETCH_AGAIN)
    return image_id
