"""Pictures as the deployed vision encoder gives them to the decoder, each computed once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles, VisionEncoder
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import MediaError, ModelCorrupt
from edgevlm.families.base import Family
from edgevlm.media import MediaLimits, load_image
from edgevlm.models.disk import require_space, sync_file

_NOTE_S = 5.0


class Pictures:
    """Embeddings float32 [n_tokens, d_model] in `folder`, one file for each picture's key."""

    def __init__(
        self,
        folder: Path,
        family: Family,
        vision: VisionEncoder,
        limits: MediaLimits,
        note: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._family = family
        self._vision = vision
        self._limits = limits
        self._note = note
        self._known: dict[Path, ImageInput] = {}
        self._encoded = 0
        self._told = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, source: Path, where: str) -> ImageInput:
        """Have a picture's rows on disk, and return what a prompt needs of it: no pixels.

        Raises MediaError with `where` it was named, and what `VisionEncoder.encode` raises.
        """
        if source not in self._known:
            try:
                pixels = load_image(source, limits=self._limits)
            except MediaError as error:
                raise type(error)(f"{where}: {error.message}", hint=error.hint) from error
            image = self._family.preprocess(pixels)
            self._encode(image)
            self._known[source] = replace(
                image, pixel_values=np.empty((0, 3, 0, 0), np.float32), pixel_mask=None
            )
        return self._known[source]

    def rows(self, key: str, start: int, count: int) -> NDArray[np.float32]:
        """Rows [count, d_model] of a prepared picture."""
        array: NDArray[np.float32] = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        return np.array(array[start : start + count])

    def _encode(self, image: ImageInput) -> None:
        path = self._path(image.key)
        if path.is_file():
            return
        rows = self._vision.encode(image, Cancel())
        if rows.ndim != 2 or len(rows) != image.n_tokens:
            raise ModelCorrupt(
                f"The vision encoder gave {rows.shape} for a picture of {image.n_tokens} tokens.",
                hint="It does not belong to its processor: fetch the model again.",
            )
        require_space(self._folder, rows.nbytes, "A picture's embeddings")
        draft = path.with_suffix(f".{os.getpid()}.new")
        with draft.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        sync_file(draft)
        draft.replace(path)
        self._encoded += 1
        if time.monotonic() - self._told > _NOTE_S:
            self._note(f"{self._encoded} pictures are encoded ...")
            self._told = time.monotonic()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npy"


def files_key(files: ModelFiles) -> str:
    """16 hex digits that tell one version of a model's files from another: its fingerprint
    stays, where only weights change."""
    digest = hashlib.sha256()
    for role, path in sorted(files.roles.items()):
        status = path.stat()
        digest.update(f"{role} {path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
