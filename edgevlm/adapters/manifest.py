"""`edgevlm.json`: what an adapter is called, what it fits, and which files it is.

    {
      "name": "medical", "version": "1.0.0", "title": "Medical terms",
      "description": "Names anatomy, instruments and findings.",
      "licence": "CC-BY-4.0",
      "bases": [{"name": "edgevlm-tiny", "fingerprint": "0123456789abcdef", "edition": 4}],
      "files": {"adapter_config.json": {"size": 871, "sha256": "..."},
                "adapter_model.safetensors": {"size": 4884488, "sha256": "..."}},
      "system": "You are ...", "scale": 1.0, "notice": "Not a diagnosis.", "calibration": {}
    }

`fingerprint` and `edition` may be null or missing, and so may the last four.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgevlm.adapters.json_fields import JsonFields, shown
from edgevlm.adapters.peft import MAX_BYTES, WEIGHTS_NAME
from edgevlm.adapters.peft_config import CONFIG_NAME, read_config
from edgevlm.models.disk import write_atomically
from edgevlm.models.names import check_name, check_path

MANIFEST_NAME = "edgevlm.json"
NO_VERSION = "0.0.0"
UNKNOWN_LICENCE = "unknown"
LARGEST_SCALE = 10.0
LONGEST_NOTICE = 200
_MOST_BYTES = 2**18
_MOST_BASES, _MOST_FILES = 32, 64
_LAST_EDITION = 10**6
_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_FIELDS = frozenset(
    (
        *("name", "version", "title", "description", "licence", "bases", "files"),
        *("system", "scale", "notice", "calibration"),
    )
)


@dataclass(frozen=True, slots=True)
class DeclaredBase:
    """A model that the adapter was made for: a catalog name or a hub id, and the
    `fingerprint` of its shapes and tokenizer where that was known. `edition` is of a model
    whose weights change under one name."""

    name: str
    fingerprint: str | None = None
    edition: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """Size in bytes, SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`files` by their paths in the folder; empty where nobody wrote an `edgevlm.json`.

    `system` is the system prompt it was trained with, `scale` what it is multiplied by unless
    the caller says otherwise, `notice` a line that goes with every answer, and `calibration`
    numbers for the confidence of its answers.
    """

    name: str
    version: str = NO_VERSION
    title: str = ""
    description: str = ""
    licence: str = UNKNOWN_LICENCE
    bases: tuple[DeclaredBase, ...] = ()
    files: Mapping[str, AdapterFile] = field(default_factory=dict)
    system: str | None = None
    scale: float | None = None
    notice: str | None = None
    calibration: Mapping[str, Any] | None = None


def manifest_of(folder: Path, name: str | None = None) -> Manifest:
    """The folder's own manifest; of a plain PEFT folder one with `name`, or else the folder's,
    and the base of `adapter_config.json`. Raises AdapterCorrupt, NotSupported."""
    path = folder / MANIFEST_NAME
    if path.is_file() or path.is_symlink():
        return read_manifest(path)
    base = read_config(folder).base
    called = name or _name_of(folder)
    bases = (DeclaredBase(base),) if base else ()
    return Manifest(called, title=called, bases=bases)


def read_manifest(path: Path) -> Manifest:
    """Read an `edgevlm.json`. Raises AdapterCorrupt with the name of what is wrong in it."""
    file = JsonFields.read(path, _MOST_BYTES)
    file.require(_FIELDS)
    fields = file.fields
    calibration = fields.get("calibration")
    if calibration is not None and not isinstance(calibration, dict):
        raise file.corrupt("needs an object as 'calibration'")
    return Manifest(
        name=_name(file),
        version=_version(file),
        title=file.text("title", 120),
        description=file.text("description", 2000, lines=True),
        licence=file.text("licence", 120),
        bases=tuple(_base(item) for item in file.objects("bases", _MOST_BASES)),
        files=_files(file),
        system=None if fields.get("system") is None else file.text("system", 8000, lines=True),
        scale=None if fields.get("scale") is None else file.number("scale", LARGEST_SCALE),
        notice=None if fields.get("notice") is None else file.text("notice", LONGEST_NOTICE),
        calibration=calibration,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `edgevlm.json` whole or not at all. Raises OSError."""
    optional = ("system", "scale", "notice", "calibration")
    fields = {k: v for k, v in asdict(manifest).items() if v is not None or k not in optional}
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / MANIFEST_NAME, text + "\n")


def _name(file: JsonFields) -> str:
    name = file.text("name", 96)
    try:
        return check_name(name)
    except ValueError as error:
        raise file.corrupt(f"has no usable 'name': {error}") from error


def _version(file: JsonFields) -> str:
    version = file.text("version", 24)
    if not _VERSION.fullmatch(version):
        raise file.corrupt(f"needs a 'version' like 1.0.0, not {shown(version)}")
    return version


def _base(file: JsonFields) -> DeclaredBase:
    file.require(frozenset(("name", "fingerprint", "edition")))
    fingerprint = file.fields.get("fingerprint")
    if fingerprint is not None and not _FINGERPRINT.fullmatch(file.text("fingerprint", 16)):
        raise file.corrupt(f"needs 16 hex digits as 'fingerprint', not {shown(fingerprint)}")
    edition = file.fields.get("edition")
    if edition is not None:
        edition = file.whole("edition", 1, _LAST_EDITION)
    return DeclaredBase(file.text("name", 200), fingerprint, edition)


def _files(file: JsonFields) -> dict[str, AdapterFile]:
    files: dict[str, AdapterFile] = {}
    for path, item in file.mapping("files", _MOST_FILES).items():
        try:
            check_path(path)
        except ValueError as error:
            raise file.corrupt(f"has no usable path in 'files': {error}") from error
        if not isinstance(item, dict):
            raise file.corrupt(f"needs an object for {path} in 'files'")
        entry = JsonFields(f"{file.where}, files, {path}", item)
        entry.require(frozenset(("size", "sha256")))
        sha256 = entry.text("sha256", 64)
        if not _SHA256.fullmatch(sha256):
            raise entry.corrupt(f"needs 64 hex digits as 'sha256', not {shown(sha256)}")
        files[path] = AdapterFile(entry.whole("size", 0, MAX_BYTES), sha256)
    if len({path.lower() for path in files}) < len(files) or MANIFEST_NAME in files:
        raise file.corrupt("names one place twice, or itself, in 'files'")
    if missing := {CONFIG_NAME, WEIGHTS_NAME} - files.keys():
        raise file.corrupt(f"has no {min(missing)} in 'files'")
    return files


def _name_of(folder: Path) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:90]
    try:
        return check_name(words)
    except ValueError:
        return "adapter"
