"""The one publisher: a folder becomes the current version of a place whole, or not at all.

    place/current              the name of the version in force
    place/<version>/...        its files, never changed
    place/<version>/manifest.json

A version is in force from the moment that `current` names it; whatever happens before,
the old one stays. Folders that `current` does not name are leftovers.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelCorrupt
from edgevlm.models.disk import sync_file, sync_folder, write_atomically
from edgevlm.models.names import check_path
from edgevlm.models.receive import hash_file

MANIFEST = "manifest.json"
_CURRENT = "current"


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """Size in bytes, `mtime_ns` as the file system keeps it, `source` as one line."""

    size: int
    sha256: str
    mtime_ns: int
    source: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a published folder. `plan` tells two recipes for one name apart.

    `runtime` is a model's placement, and `peft` for an adapter. `roles` maps a role to a path;
    `revisions` a repository to the commit it was taken at. `edition` is the catalog's.
    """

    name: str
    runtime: str
    plan: str
    files: Mapping[str, PublishedFile]
    roles: Mapping[str, str]
    quantization: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    edition: int | None = None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True, slots=True)
class Published:
    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def runtime(self) -> str:
        return self.manifest.runtime


@dataclass(frozen=True, slots=True)
class Verification:
    """What is in force at a place, read whole: `altered` maps a path to what is wrong with it, and
    is empty where all of the `files` are as they were published."""

    name: str
    runtime: str
    folder: Path
    files: int
    altered: Mapping[str, str]


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def publish(staging: Path, place: Path, manifest: Manifest) -> Published:
    """Make the staged folder the version in force. It must be on the same disk. Raises OSError.

    Every file that `manifest` names is in `staging`, checked; others are removed.
    """
    _keep_only(staging, set(manifest.files))
    for path in manifest.files:
        sync_file(staging / path)
    text = json.dumps(asdict(manifest), indent=1)
    write_atomically(staging / MANIFEST, text)
    for folder in {(staging / path).parent for path in manifest.files}:
        sync_folder(folder)
    version = secrets.token_hex(6)
    place.mkdir(parents=True, exist_ok=True)
    staging.replace(place / version)
    sync_folder(place)
    write_atomically(place / _CURRENT, version)
    result = Published(place / version, manifest)
    remove_leftovers(result)
    return result


def published(place: Path) -> Published | None:
    """The version in force, None where there is none. Raises ModelCorrupt."""
    version = _in_force(place)
    while version is not None:
        folder = place / version
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            # Another process may have put a newer one in force and removed this one.
            before, version = version, _in_force(place)
            if version == before:
                return None
        except (ValueError, OSError) as error:
            raise _broken(place) from error
        else:
            return Published(folder, _read_manifest(text, place))
    return None


def _in_force(place: Path) -> str | None:
    try:
        return check_path((place / _CURRENT).read_text(encoding="utf-8").strip())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise _broken(place) from error


def versions(place: Path) -> list[Published]:
    """Every version with a record, in force or left over: good for their files, once checked."""
    found = []
    for path in sorted(place.glob(f"*/{MANIFEST}")):
        try:
            manifest = _read_manifest(path.read_text(encoding="utf-8"), place)
        except (OSError, ValueError, ModelCorrupt):
            continue
        found.append(Published(path.parent, manifest))
    return found


def remove_leftovers(version: Published) -> None:
    """Remove what lies beside the version in force: older ones, or what a crash left.

    Best effort: on Windows another process may hold an old version's files open.
    """
    for path in version.folder.parent.iterdir():
        if path.is_dir() and path != version.folder:
            shutil.rmtree(path, ignore_errors=True)


def retract(place: Path) -> None:
    """Remove everything: it is out of force before the first file goes. Raises OSError."""
    (place / _CURRENT).unlink(missing_ok=True)
    if place.exists():
        shutil.rmtree(place)


def altered(version: Published, *, thorough: bool) -> dict[str, str]:
    """Return path and reason for each file that is not as it was published.

    Without `thorough` a file is read again only where its size or its time has changed.
    """
    reasons: dict[str, str] = {}
    for path, file in version.manifest.files.items():
        reason = _alteration(version.folder / path, file, thorough)
        if reason is not None:
            reasons[path] = reason
    return reasons


def verify(place: Path, name: str, runtime: str) -> Verification | None:
    """Compare every byte of what is in force at a place with its record; None where nothing is.

    Where the record can't be read, it goes by `name` and `runtime`.
    """
    try:
        version = published(place)
        while version is not None:
            wrong = altered(version, thorough=True)
            before, version = version, published(place)
            # Another process may have put a newer one in force and removed this one.
            if not wrong or (version is not None and version.folder == before.folder):
                files = len(before.manifest.files)
                return Verification(before.name, before.runtime, before.folder, files, wrong)
    except ModelCorrupt:
        return Verification(name, runtime, place, 0, {MANIFEST: "can't be read"})
    return None


def _alteration(path: Path, file: PublishedFile, thorough: bool) -> str | None:
    try:
        status = path.stat()
        if status.st_size != file.size:
            return f"{status.st_size} bytes instead of {file.size}"
        moved = status.st_mtime_ns != file.mtime_ns
        if (thorough or moved) and hash_file(path).sha256 != file.sha256:
            return "its contents have changed"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if moved:
        _restore_time(path, file.mtime_ns)
    return None


def _restore_time(path: Path, mtime_ns: int) -> None:
    """Spare the next load from reading a file that was only copied."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(mtime_ns, mtime_ns))


def _read_manifest(text: str, place: Path) -> Manifest:
    try:
        data: dict[str, Any] = json.loads(text)
        files = {check_path(p): PublishedFile(**f) for p, f in data.pop("files").items()}
        manifest = Manifest(files=files, **data)
        if not set(manifest.roles.values()) <= set(files):
            raise ValueError("a role without its file")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(place) from error
    return manifest


def _broken(place: Path) -> ModelCorrupt:
    return ModelCorrupt(
        f"The record of what is in {place} can't be read.",
        hint="`edgevlm model pull NAME` puts it right.",
    )


def _keep_only(folder: Path, wanted: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
