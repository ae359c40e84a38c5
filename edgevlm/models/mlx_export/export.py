"""A Hugging Face folder to one of MLX, its decoder quantised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgevlm.errors import NotSupported, UsageError
from edgevlm.models.progress import Progress, Silent

BITS = (4, 8, 16, 32)
GROUP_SIZES = (32, 64, 128)
_COPIED = (".json", ".jinja", ".txt", ".model")
_SHARD_BYTES = 2 * 2**30


def export_mlx(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    group_size: int = 64,
    vision_bits: int = 16,
    progress: Progress | None = None,
) -> None:
    """Write `target/config.json`, `target/*.safetensors` and copies of the other
    configuration files of `source`, whose weights go through memory a shard at a time.

    `bits` are those of the decoder's matrices, in groups of `group_size` input features;
    below 8 its embeddings and head stay at 8, which costs little and decides the tokens.
    `vision_bits` are those of the vision tower and the projector. 16 means the source's own
    type where it has 16 bits. config.json comes last: without it, a folder is no model.
    Raises ModelCorrupt naming the tensor that is missing or misshapen, NotSupported (also
    where MLX is not installed), UsageError for other widths, and OSError.
    """
    for what, width in (("decoder", bits), ("vision encoder", vision_bits)):
        if width not in BITS:
            raise UsageError(f"A {what} can't be written at {width} bits: choose from {BITS}.")
    if group_size not in GROUP_SIZES:
        raise UsageError(f"Groups can't have {group_size} features: choose from {GROUP_SIZES}.")
    if find_spec("mlx_vlm") is None:
        raise NotSupported(
            "Writing MLX files needs the package mlx-vlm.", hint="pip install 'edgevlm[mlx]'"
        )
    from edgevlm.models.mlx_export.weights import MlxWeights

    progress = progress or Silent()
    weights = MlxWeights(source, bits=bits, vision_bits=vision_bits, group_size=group_size)
    target.mkdir(parents=True, exist_ok=True)
    progress.start(weights.n_bytes, f"Quantising the weights for MLX at {bits} bits")
    shards = list(_cut(weights.sizes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = _shard_name(number, len(shards))
        partial = target / f"{name}.partial.safetensors"
        try:
            weights.save(names, partial)
            partial.replace(target / name)
        finally:
            partial.unlink(missing_ok=True)
        weight_map |= dict.fromkeys(names, name)
        progress.advance(sum(weights.sizes[each] for each in names))
    if len(shards) > 1:
        index = {"metadata": {"total_size": weights.n_bytes}, "weight_map": weight_map}
        _write_json(target / "model.safetensors.index.json", index)
    if not target.samefile(source):
        _copy_configuration(source, target)
    _write_json(target / "config.json", weights.config)
    progress.finish()


def _cut(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names of tensors, a shard's worth at a time."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > _SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _copy_configuration(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED and not path.name.endswith(".index.json")
        if wanted and path.name != "config.json" and path.is_file():
            shutil.copyfile(path, target / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
    partial.replace(path)
