"""A picture as mlx-vlm's own processor of an architecture prepares it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from logging import ERROR
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.engine.prompt import Block, ImageSlot
from edgevlm.errors import EdgeVLMError, ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.families.layout import Piece, Tokens
from edgevlm.runtimes.mlx_config import Config, rope_fields
from edgevlm.runtimes.mlx_loading import without_patches
from edgevlm.runtimes.mlx_thread import on_mlx_thread, one_line

# What a processor makes of text, beside what it makes of the picture.
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, eq=False, slots=True)
class PreparedPicture:
    """`rgb` uint8 [H, W, 3], the arrays that the model takes with it, the ids that a prompt
    reads there, and which of them stand for rows of embeddings."""

    rgb: NDArray[np.uint8]
    arrays: Mapping[str, NDArray[Any]]
    ids: tuple[int, ...]
    image_id: int
    block: Block | None

    @property
    def n_tokens(self) -> int:
        """Rows of embeddings."""
        return self.ids.count(self.image_id)

    def lay_out(self, index: int) -> list[Piece]:
        """As image `index` of a prompt."""
        pieces: list[Piece] = []
        start = 0
        for is_image, run in groupby(self.ids, lambda id_: id_ == self.image_id):
            ids = tuple(run)
            if is_image:
                pieces.append(ImageSlot(index, start, len(ids)))
                start += len(ids)
            else:
                pieces.append(Tokens(ids))
        return pieces


class Preprocessor:
    """mlx-vlm's processor class of an architecture, on the files of a folder.

    It is made by its class's own name and with remote code refused: the ways that guess a
    class from the folder's files are not taken. Raises ModelCorrupt, NotSupported.
    """

    def __init__(self, folder: Path, architecture: ModuleType, config: Config) -> None:
        self._m_rope = "mrope_section" in rope_fields(config)
        vision = config.get("vision_config") or {}
        self._merge = int(vision.get("spatial_merge_size", 1))
        self.image_id = image_token_id(config)
        self._processor = on_mlx_thread(_make, folder, architecture)
        self._image_token: str = self._processor.tokenizer.convert_ids_to_tokens(self.image_id)
        # Numbers that can't be come out here rather than in a conversation.
        try:
            self.prepare(np.zeros((64, 64, 3), np.uint8))
        except RuntimeFailed as error:
            raise _broken(folder, error) from error

    def prepare(self, rgb: NDArray[np.uint8]) -> PreparedPicture:
        """Raises RuntimeFailed, NotSupported."""
        return on_mlx_thread(self._prepare, rgb)

    def _prepare(self, rgb: NDArray[np.uint8]) -> PreparedPicture:
        text = self._image_token
        made = self._processor(images=[Image.fromarray(rgb)], text=[text])
        arrays = {name: np.array(array) for name, array in made.items() if name not in _OF_TEXT}
        ids = np.array(made["input_ids"]).reshape(-1).tolist()
        # A tokenizer may put something before every text and after it.
        plain = list(self._processor.tokenizer(text)["input_ids"])
        before = plain.index(self.image_id)
        after = len(plain) - before - 1
        inner = tuple(ids[before : len(ids) - after])
        return PreparedPicture(rgb, arrays, inner, self.image_id, self._block(arrays, inner))

    def _block(self, arrays: Mapping[str, NDArray[Any]], ids: tuple[int, ...]) -> Block | None:
        """Time, row and column of each embedding (M-RoPE), as far as the longest side."""
        if not self._m_rope:
            return None
        grid = arrays.get("image_grid_thw")
        if grid is None or set(ids) != {self.image_id}:
            raise NotSupported(
                "This model's pictures have positions that are not known here.",
                hint="Run the model with llama.cpp.",
            )
        times, rows, columns = (int(n) for n in grid.reshape(-1)[:3])
        rows, columns = rows // self._merge, columns // self._merge
        positions = np.indices((times, rows, columns), np.int32).reshape(3, -1).T
        return Block(max(times, rows, columns), np.ascontiguousarray(positions))


def image_token_id(config: Config) -> int:
    """The token that stands for a row of a picture. Raises ModelCorrupt."""
    for name in ("image_token_id", "image_token_index"):
        if type(config.get(name)) is int:
            return int(config[name])
    raise ModelCorrupt(
        "config.json names no image_token_id.", hint="Use a model that takes pictures."
    )


def _make(folder: Path, architecture: ModuleType) -> Any:
    from transformers.utils import logging

    with without_patches():
        made_for = _processor_class(architecture)
    verbosity = logging.get_verbosity()
    # mlx-vlm calls transformers in ways that it warns of.
    logging.set_verbosity(ERROR)
    try:
        return made_for.from_pretrained(str(folder), trust_remote_code=False)
    except EdgeVLMError:
        raise
    # Files that anyone may have written, read by several libraries.
    except Exception as error:
        raise _broken(folder, error) from error
    finally:
        logging.set_verbosity(verbosity)


def _broken(folder: Path, error: Exception) -> ModelCorrupt:
    return ModelCorrupt(
        f"The processor of {folder.name} does not work: {one_line(error)}.",
        hint="Check preprocessor_config.json, processor_config.json and the tokenizer's files.",
    )


def _processor_class(architecture: ModuleType) -> Any:
    from transformers.processing_utils import ProcessorMixin

    for found in pkgutil.iter_modules(architecture.__path__):
        if not found.name.startswith("process"):
            continue
        module = importlib.import_module(f"{architecture.__name__}.{found.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, ProcessorMixin):
                return value
    raise NotSupported(
        f"mlx-vlm has no processor of its own for {architecture.__name__.rpartition('.')[2]}.",
        hint="Use a model of another architecture, or llama.cpp.",
    )
