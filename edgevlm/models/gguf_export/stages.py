"""The stages of an export. Each leaves one file, which a later call finds and does not redo."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf

from edgevlm.families.config_files import read_chat_template
from edgevlm.models.checkpoint import Checkpoint, fingerprint
from edgevlm.models.disk import disk_errors, require_space
from edgevlm.models.gguf_export import decoder, vision
from edgevlm.models.gguf_export.quantizer import FILE_TYPES, quantize
from edgevlm.models.gguf_export.vocabulary import tokenizer_metadata
from edgevlm.models.gguf_export.writer import TensorPlan, Value, Width, write_gguf
from edgevlm.models.layouts.base import configuration
from edgevlm.models.progress import Progress
from edgevlm.models.vlm_config import read_config

_WIDTHS: Mapping[int, Width] = {32: "f32", 16: "f16", 8: "q8_0"}
# What a file was made from: `source` and everything that shapes it.
_FINGERPRINT = "edgevlm.source_fingerprint"


class Stages:
    """Reads the checkpoint's headers, and so what is wrong with them, at once."""

    def __init__(self, source: Path, target: Path, name: str, progress: Progress) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
        self._config = read_config(source)
        self._checkpoint = Checkpoint(source)
        self._fingerprint = fingerprint(source)
        with disk_errors(target):
            target.mkdir(parents=True, exist_ok=True)

    def vision_encoder(self, bits: int) -> Path:
        width = _WIDTHS[bits]
        path = self._target / f"mmproj-{self._name}-{width.upper()}.gguf"
        if not self._is_done(path):
            metadata = vision.vision_metadata(self._source, self._config)
            tensors = vision.vision_tensors(self._checkpoint, self._config, width)
            self._write(path, vision.ARCH, width, metadata, tensors)
        return path

    def decoder(self, kind: str) -> Path:
        path = self._target / f"{self._name}-{kind.upper()}.gguf"
        if self._is_done(path):
            return path
        if kind in ("f32", "f16"):
            self._write_decoder(path, "f32" if kind == "f32" else "f16")
            return path
        wide = path.with_name(f"{self._name}-F16.gguf.work")
        if not self._is_done(wide):
            self._write_decoder(wide, "f16")
        with disk_errors(self._target):
            require_space(self._target, wide.stat().st_size, path.name)
            quantize(wide, path, kind, self._progress)
            wide.unlink()
        return path

    def copy_configuration(self) -> None:
        if self._target.samefile(self._source):
            return
        with disk_errors(self._target):
            for name in configuration([path.name for path in self._source.iterdir()]):
                shutil.copyfile(self._source / name, self._target / name)

    def _write_decoder(self, path: Path, width: Width) -> None:
        text = self._config.text
        metadata = {
            "general.type": "model",
            **decoder.decoder_metadata(text),
            **tokenizer_metadata(self._source, text.vocab_size),
            "tokenizer.chat_template": read_chat_template(self._source),
        }
        tensors = decoder.decoder_tensors(self._checkpoint, self._config, width)
        self._write(path, decoder.ARCH, width, metadata, tensors)

    def _write(
        self,
        path: Path,
        arch: str,
        width: Width,
        metadata: Mapping[str, Value],
        tensors: Sequence[TensorPlan],
    ) -> None:
        general: dict[str, Value] = {
            "general.name": self._name,
            "general.file_type": FILE_TYPES[width],
            "general.quantization_version": gguf.GGML_QUANT_VERSION,
            _FINGERPRINT: self._fingerprint,
        }
        with disk_errors(self._target):
            require_space(self._target, sum(tensor.n_bytes for tensor in tensors), path.name)
            write_gguf(path, arch, {**general, **metadata}, tensors, self._progress)

    def _is_done(self, path: Path) -> bool:
        """Whether an earlier call has left the file, whole, from this very source."""
        if not path.is_file():
            return False
        try:
            field = gguf.GGUFReader(path).get_field(_FINGERPRINT)
        except Exception:  # whatever a file of the same name may hold
            return False
        return field is not None and bool(field.contents() == self._fingerprint)
