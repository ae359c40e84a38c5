"""The models that EdgeVLM knows by name: `catalog.toml`, read and checked.

An entry whose files were fetched and hashed is `verified`: its sizes are exact and
every file has a SHA-256. Of the others the repositories' names come from their public
pages, sizes are near enough to check the disk with, and a SHA-256 is there where a page
showed it; the hub's own size and hash are asked for before the download, must agree
with what is here, and are what the download is held to.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from edgevlm.devices.shape import DecoderShape, ModelShape, VisionShape
from edgevlm.engine.placement import Placement
from edgevlm.errors import ModelCorrupt
from edgevlm.models.names import HubId, check_name, check_path
from edgevlm.models.sources import Source, parse_source

T = TypeVar("T")

VISION_ROLE = "vision_encoder"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ASSEMBLER = re.compile(r"edgevlm\.[a-z_.]+:[a-z_]+")


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One file of a model; `path` is its place inside the published folder, size in bytes."""

    path: str
    source: Source
    size: int
    sha256: str | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True)
class RuntimeFiles:
    """What one runtime needs of a model.

    `quantization` names the numbers of each part ("vision": "fp16"). With `assemble`, the
    files are raw material: that function of ours makes the model's folder out of them,
    `disk` bytes large, and `edition` counts its changes; `weights` then gives the bytes of
    the parts "decoder", "vision" and "embeddings".
    """

    files: tuple[CatalogFile, ...]
    quantization: Mapping[str, str] = field(default_factory=dict)
    assemble: str | None = None
    disk: int = 0
    edition: int = 1
    weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def download_size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model. `parameters` is a count, `context_length` in tokens, `base` a hub id or a text.

    `runtimes` maps a placement, as it is spelled, to the files that make the model there.
    """

    name: str
    title: str
    family: str
    base: str
    parameters: int
    context_length: int
    licence: str
    verified: bool
    runtimes: Mapping[str, RuntimeFiles]
    shape: ModelShape | None = None

    @property
    def edition(self) -> int | None:
        """Of a model that is assembled here; None for one whose files are as published."""
        return next((r.edition for r in self.runtimes.values() if r.assemble), None)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where it runs: as its tables say, and each vision part with each language part."""
        whole = [Placement.parse(name) for name in self.runtimes]
        single = [p for p in whole if p.vision == p.language]
        mixed = [Placement(v.vision, p.language) for v in single for p in single]
        return tuple(dict.fromkeys([*whole, *mixed]))

    def files_for(self, placement: str) -> RuntimeFiles | None:
        """The files of a placement; of two tables where it is a mix of two runtimes."""
        if placement in self.runtimes:
            return self.runtimes[placement]
        wanted = Placement.parse(placement)
        vision, language = (self.runtimes.get(r) for r in (wanted.vision, wanted.language))
        if vision is None or language is None or vision.assemble or language.assemble:
            return None
        return _mixed(vision, language)


@dataclass(frozen=True, slots=True)
class Catalog:
    entries: Mapping[str, CatalogEntry]

    def by_base(self, hub: HubId) -> CatalogEntry | None:
        """The entry made from a hub repository, for those who know it by that name."""
        for entry in self.entries.values():
            if entry.base == str(hub):
                return entry
        return None


def _mixed(vision: RuntimeFiles, language: RuntimeFiles) -> RuntimeFiles:
    """The pictures' part of one table with everything else of another."""
    kept = [file for file in language.files if file.role != VISION_ROLE]
    taken = {file.path for file in kept}
    # A table without that role has one file of weights for both parts, and its configuration.
    has_role = any(file.role == VISION_ROLE for file in vision.files)
    added = [
        file
        for file in vision.files
        if file.path not in taken and (file.role == VISION_ROLE or not has_role)
    ]
    return RuntimeFiles(
        files=(*added, *kept),
        quantization={
            **{part: bits for part, bits in language.quantization.items() if part != "vision"},
            **{part: bits for part, bits in vision.quantization.items() if part == "vision"},
        },
    )


@cache
def load_catalog() -> Catalog:
    """The catalog that ships with EdgeVLM, the only one whose entries may be assembled."""
    text = (resources.files("edgevlm.models") / "catalog.toml").read_text(encoding="utf-8")
    return parse_catalog(text, shipped=True)


def parse_catalog(text: str, *, shipped: bool = False) -> Catalog:
    """Read a catalog. Raises ModelCorrupt naming the entry and what is wrong with it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelCorrupt(f"The model catalog is not valid TOML: {error}.") from error
    entries: dict[str, CatalogEntry] = {}
    for name, table in tables.items():
        try:
            entries[check_name(name)] = _entry(name, _Table(table), shipped)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelCorrupt(f"The model catalog is wrong at {name!r}: {error}.") from error
    return Catalog(entries)


class _Table:
    """A TOML table that is read key by key, and has none left at the end."""

    def __init__(self, table: object) -> None:
        if not isinstance(table, dict):
            raise TypeError("a table is expected")
        self._left: dict[str, Any] = dict(table)

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self._left.pop(key, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{key!r} must be a {kind.__name__}, not {value!r}")
        return value

    def take_optional(self, key: str, kind: type[T]) -> T | None:
        return self.take(key, kind) if key in self._left else None

    def take_rest(self, read: Callable[[str, _Table], T]) -> dict[str, T]:
        rest, self._left = self._left, {}
        if strange := [key for key, value in rest.items() if not isinstance(value, dict)]:
            raise ValueError(f"unknown keys {sorted(strange)}")
        return {key: read(key, _Table(value)) for key, value in rest.items()}

    def end(self) -> None:
        if self._left:
            raise ValueError(f"unknown keys {sorted(self._left)}")


def _entry(name: str, table: _Table, shipped: bool) -> CatalogEntry:
    verified = table.take("verified", bool)
    context_length = _positive("context_length", table.take("context_length", int))
    shape = table.take_optional("shape", dict)
    return CatalogEntry(
        name=name,
        title=table.take("title", str),
        family=table.take("family", str),
        base=table.take("base", str),
        parameters=_positive("parameters", table.take("parameters", int)),
        context_length=context_length,
        licence=table.take("licence", str),
        verified=verified,
        runtimes=table.take_rest(lambda key, rest: _runtime(key, rest, verified, shipped)),
        shape=None if shape is None else _shape(shape, context_length),
    )


def _shape(table: dict[str, Any], context_length: int) -> ModelShape:
    """Sizes from the model's own config.json; of a vision tower that is no ViT its costs."""
    vision = dict(table.get("vision", {}))
    make = VisionShape if "flops" in vision else VisionShape.transformer
    return ModelShape(
        decoder=DecoderShape(**table["decoder"]),
        vision=make(**vision) if vision else None,
        context_length=context_length,
    )


def _runtime(name: str, table: _Table, verified: bool, shipped: bool) -> RuntimeFiles:
    Placement.parse(name)
    prefix = table.take("from", str, "")
    rows = table.take("files", list)
    runtime = RuntimeFiles(
        files=tuple(_file(_Table(row), prefix, verified) for row in rows),
        quantization={str(k): str(v) for k, v in table.take("quantization", dict, {}).items()},
        assemble=_assembler(table.take_optional("assemble", str), shipped),
        disk=table.take("disk", int, 0),
        edition=_positive("edition", table.take("edition", int, 1)),
        weights={str(k): int(v) for k, v in table.take("weights", dict, {}).items()},
    )
    table.end()
    paths = [file.path.lower() for file in runtime.files]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"the files for {name} are none, or two have one path")
    return runtime


def _file(table: _Table, prefix: str, verified: bool) -> CatalogFile:
    path = check_path(table.take("path", str))
    file = CatalogFile(
        path=path,
        source=parse_source(table.take("source", str, f"{prefix}/{path}")),
        size=_positive("size", table.take("size", int)),
        sha256=table.take_optional("sha256", str),
        role=table.take_optional("role", str),
    )
    table.end()
    if file.sha256 is not None and not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"{file.sha256!r} is not a SHA-256")
    if verified and file.sha256 is None:
        raise ValueError(f"{path} has no SHA-256, so the entry is not verified")
    return file


def _assembler(name: str | None, shipped: bool) -> str | None:
    # The name is imported and called: only our own code, and only when our own catalog says so.
    if name is not None and not (shipped and _ASSEMBLER.fullmatch(name)):
        raise ValueError(f"'assemble' can't be {name!r} here")
    return name


def _positive(key: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{key!r} must be above 0")
    return value
