"""A Hugging Face folder of a SmolVLM or Idefics3 model to Core ML packages."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from edgevlm.errors import ModelCorrupt, NotSupported, UsageError
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.disk import disk_errors, sync_file, sync_folder
from edgevlm.models.layouts.base import configuration
from edgevlm.models.progress import Progress, Silent
from edgevlm.models.vlm_config import ModelConfig, read_config

BITS = (16, 8, 4)
VISION_BITS = (16, 8)
# States whose sizes are no multiples of it keep off the Neural Engine (apple/coremltools#2631).
_CONTEXT_STEP = 32
_FOLDER = "coreml"
_NEEDED = ("torch", "coremltools")


class _Settings(NamedTuple):
    bits: int
    vision_bits: int
    context_length: int
    max_rank: int


def export_coreml(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    vision_bits: int = 16,
    context_length: int = 2048,
    max_rank: int = 32,
    progress: Progress | None = None,
) -> None:
    """Write `target/coreml/{vision_encoder,decoder}.mlpackage` and `embed_tokens.npy`, and
    copy the configuration files of `source`.

    The folder `coreml` appears, or replaces an older one, when it is whole. `bits` 16, 8
    or 4 are those of the decoder; the token embeddings, and the output head, have at least
    8. The KV cache is as long as `context_length`, a multiple of 32, or as the model's own
    limit where that is less. Adapters used together have room for `max_rank` in all, which is
    read for every token whether they fill it or not; with 0 the decoder takes none. Raises
    ModelCorrupt, NoSpace, UsageError, and NotSupported for other families and where torch or
    coremltools is missing.
    """
    _check_arguments(bits, vision_bits, context_length, max_rank)
    _check_installed()
    config = read_config(source)
    context_length = min(context_length, config.text.max_length // _CONTEXT_STEP * _CONTEXT_STEP)
    _check_sizes(source, config, context_length)
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        with _replacing(target / _FOLDER) as staging:
            settings = _Settings(bits, vision_bits, context_length, max_rank)
            _write(source, staging, config, settings, progress or Silent())
            if not target.samefile(source):
                for name in configuration([path.name for path in source.iterdir()]):
                    shutil.copyfile(source / name, target / name)


def _write(
    source: Path,
    folder: Path,
    config: ModelConfig,
    settings: _Settings,
    progress: Progress,
) -> None:
    from edgevlm.models.coreml_export import convert
    from edgevlm.models.coreml_export.decoder import load_decoder
    from edgevlm.models.coreml_export.embeddings import save_embeddings
    from edgevlm.models.coreml_export.vision import load_vision

    bits, vision_bits, context_length, max_rank = settings
    checkpoint = Checkpoint(source)
    save_embeddings(checkpoint, config.text, folder / "embed_tokens.npy", max(bits, 8))
    with convert.quietly():
        progress.note("Converting the vision encoder for Core ML")
        encoder = load_vision(checkpoint, config.vision, config.text.hidden_size)
        program = convert.convert_vision(encoder, config.vision)
        if vision_bits < 16:
            program = convert.quantize(program, vision_bits)
        convert.save(program, folder / "vision_encoder.mlpackage")
        del encoder, program
        progress.note("Converting the decoder for Core ML")
        decoder = load_decoder(checkpoint, config, context_length, max_rank)
        program = convert.convert_decoder(decoder)
        if bits < 16:
            progress.note(f"Rounding the decoder's weights to {bits} bits")
            program = convert.quantize(program, bits)
        convert.save(program, folder / "decoder.mlpackage")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends without an error."""
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = staging.with_name(f"{staging.name}-old")
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                sync_file(path)
        staging.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        try:
            staging.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        sync_folder(folder.parent)
    finally:
        for leftover in (staging, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_arguments(bits: int, vision_bits: int, context_length: int, max_rank: int) -> None:
    for part, asked, known in (("decoder", bits, BITS), ("vision", vision_bits, VISION_BITS)):
        if asked not in known:
            raise UsageError(f"A {part} can't be written at {asked} bits: choose from {known}.")
    if context_length < _CONTEXT_STEP or context_length % _CONTEXT_STEP:
        raise UsageError(
            f"A Core ML context can't be {context_length} positions long.",
            hint=f"Ask for a multiple of {_CONTEXT_STEP}.",
        )
    if max_rank < 0:
        raise UsageError(f"Adapters can't have a rank of {max_rank}.", hint="Ask for 0 or more.")


def _check_installed() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NotSupported(
            f"Conversion for Core ML needs {' and '.join(missing)}, not installed here.",
            hint="pip install 'edgevlm[coreml,convert]'",
        )


def _check_sizes(source: Path, config: ModelConfig, context_length: int) -> None:
    """What would fail deep in torch where config.json makes no sense."""
    text, vision = config.text, config.vision
    fits = (
        context_length >= _CONTEXT_STEP
        and min(text.n_layers, text.n_heads, text.n_kv_heads, vision.n_layers, vision.n_heads) > 0
        and min(vision.patch_size, vision.scale_factor, vision.n_channels) > 0
        and text.head_dim > 0
        and text.head_dim % 2 == 0
        and text.n_heads % text.n_kv_heads == 0
        and vision.hidden_size % vision.n_heads == 0
        and vision.image_size % (vision.patch_size * vision.scale_factor) == 0
    )
    if not fits:
        raise ModelCorrupt(f"{source}/config.json gives sizes that don't go together.")
