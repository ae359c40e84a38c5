"""The tensors of a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelCorrupt
from edgevlm.models.names import check_path
from edgevlm.models.safetensors import SafetensorsFile

INDEX_NAME = "model.safetensors.index.json"


class Checkpoint:
    """All tensors of a folder by name, in one safetensors file or several."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = [SafetensorsFile(path) for path in _shards(folder)]

    def __contains__(self, name: str) -> bool:
        return any(name in file for file in self._files)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ModelCorrupt where a tensor is missing or shaped otherwise."""
        self._file_of(name, shape)

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """One tensor as float32. Raises ModelCorrupt where it is missing or shaped otherwise."""
        array = self._file_of(name, shape).read(name)
        return np.ascontiguousarray(array, dtype=np.float32)

    def _file_of(self, name: str, shape: tuple[int, ...]) -> SafetensorsFile:
        for file in self._files:
            if name in file:
                found = file.shape(name)
                if found != shape:
                    raise ModelCorrupt(f"{name} has the shape {found}, config.json says {shape}.")
                return file
        raise ModelCorrupt(
            f"{self.folder} has no tensor {name}.",
            hint="Convert the published weights, as transformers reads them.",
        )


def _shards(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    try:
        weight_map = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(
            f"{folder} has no safetensors weights.",
            hint="Convert the folder or the owner/repo that the model was published in.",
        ) from error
    try:
        names = [check_path(name) for name in names]
    except (AttributeError, ValueError) as error:
        raise ModelCorrupt(f"{folder}/{INDEX_NAME} names no files of its folder.") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelCorrupt(f"{folder} lacks {missing[0]}.")
    return [folder / name for name in names]


def fingerprint(folder: Path) -> str:
    """Of the contents of the small files, and of the weights' names, sizes and times."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        elif path.suffix in (".json", ".jinja"):
            digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
