"""Models of families that have no file in `families/`: mtmd prepares their pictures, and the
chat template in the GGUF file lays out their prompts.

mtmd puts a family's tokens around a picture itself, so the template is not told of pictures:
it sees text where they are, which is what llama.cpp's own programs show it. It is rendered
here, in our sandbox.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.prompt import ImageInput, ImageSlot, Prompt
from edgevlm.errors import ModelCorrupt, TemplateError
from edgevlm.families.base import Detail, Turn
from edgevlm.families.config_files import read_chat_template
from edgevlm.families.layout import Letters, Markup, Piece, Tokens, images_of, render_turns
from edgevlm.families.shrink import prepare_within
from edgevlm.families.template import ChatTemplate
from edgevlm.runtimes.llamacpp_header import GgufHeader
from edgevlm.runtimes.llamacpp_library import llama
from edgevlm.runtimes.llamacpp_mtmd import Mtmd
from edgevlm.runtimes.llamacpp_picture import MtmdPicture, prepare
from edgevlm.runtimes.llamacpp_vocabulary import Vocabulary
from edgevlm.runtimes.llamacpp_weights import Weights


class MtmdFamily:
    """The family of a decoder and the mmproj that belongs to it.

    Raises NotSupported for tokenizers of an unknown kind, ModelCorrupt where there is no chat
    template, TemplateError for one that can't be compiled.
    """

    name = "mtmd"
    video = None

    def __init__(self, mtmd: Mtmd, weights: Weights, folder: Path) -> None:
        self._mtmd = mtmd
        self._vocabulary = Vocabulary(weights)
        self.tokenizer = self._vocabulary.decoder
        self.stop_ids = self._vocabulary.stop_ids
        source = _template_source(weights, folder)
        self._template = ChatTemplate(source, self._vocabulary.named_tokens())
        self._in_parts = _takes_parts(self._template)
        with GgufHeader(mtmd.path) as header:
            self._own_side = header.count("clip.vision.image_size")
        self._turn = threading.Lock()

    def preprocess(
        self, pixels: NDArray[np.uint8], detail: Detail = "auto", budget: int | None = None
    ) -> ImageInput:
        """Prepare RGB uint8 [H, W, 3].

        `low` makes it no larger than the pictures that the encoder was made for; below that,
        and with a `budget`, it is made smaller before mtmd sees it. Raises UsageError where no
        size costs so little, NotSupported, RuntimeFailed.
        """
        longest = self._own_side if detail == "low" else None
        with self._turn:
            made = prepare_within(
                pixels, partial(prepare, self._mtmd), longest=longest, budget=budget
            )
        return made.as_input()

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Lay out the conversation, ending where the assistant's answer begins.

        Text never turns into special tokens. Raises TemplateError.
        """
        images = images_of(turns)
        pictures = [_picture(image).lay_out(index) for index, image in enumerate(images)]
        pieces = render_turns(self._template, turns, pictures, in_parts=self._in_parts)
        slots = [piece for piece in pieces if isinstance(piece, ImageSlot)]
        if slots != [p for picture in pictures for p in picture if isinstance(p, ImageSlot)]:
            raise TemplateError(
                "The chat template leaves pictures out, or changes their order.",
                hint="Use another model.",
            )
        parts = self._vocabulary.encode(pieces)
        begin = self._vocabulary.begin
        if begin is None or _first_id(parts) == begin:
            return Prompt(parts, images)
        return Prompt(self._vocabulary.encode([Tokens((begin,)), *pieces]), images)


def _picture(image: ImageInput) -> MtmdPicture:
    if not isinstance(image.prepared, MtmdPicture):
        raise TemplateError(
            "A picture was prepared for another model.", hint="Prepare it with this one."
        )
    return image.prepared


def _first_id(parts: tuple[tuple[int, ...] | ImageSlot, ...]) -> int | None:
    first = parts[0] if parts else ()
    return first[0] if isinstance(first, tuple) and first else None


def _template_source(weights: Weights, folder: Path) -> str:
    """The template in the GGUF file, or else the one beside it."""
    own: bytes | None = llama.llama_model_chat_template(weights.pointer, None)
    if own is not None:
        return own.decode("utf-8", "replace")
    try:
        return read_chat_template(folder)
    except ModelCorrupt as error:
        raise ModelCorrupt(
            f"{weights.path.name} has no chat template.",
            hint="Put one beside it as chat_template.jinja.",
        ) from error


def _takes_parts(template: ChatTemplate) -> bool:
    """Whether a turn may be a list of parts, rather than one string."""
    marks: list[Piece] = [Letters("a"), Markup("b"), Letters("c")]
    turn = Turn("user", ("a", _NO_PICTURE, "c"))
    try:
        pieces = render_turns(template, [turn], [marks[1:2]])
    except TemplateError:
        return False
    return [piece for piece in pieces if piece in marks] == marks


_NO_PICTURE = ImageInput(np.empty((0, 3, 0, 0), np.float32), None, (0, 0), 0, "")
