"""Captioned cut-out pictures of single things, for training and for the held-out test.

    python recipes/tiny/pictures.py

fetches the packages of sources.toml (about 310 MB) into build/tiny/, gives every picture whose
caption names a concept of concepts.txt (see captions.py) that concept, and packs them all into
build/tiny/cutouts.npz. The pictures that held_out.txt lists are held out for the test. They were
drawn once: about one in seven, whole groups of near-duplicates (duplicates.py), and only where
another drawing of the concept was left to learn from. The list stays as it is whatever becomes of
the captions; a picture that turns out to be like one of the list is in neither half. The counts
are printed, and contact sheets are written for looking at.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from captions import Captions, Concept, load_concepts
from duplicates import group, leaks
from numpy.typing import NDArray
from packages import checked, fetch, npm_files, unpack_deb
from PIL import Image, ImageDraw
from weights import CACHE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = Path(__file__).with_name("sources.toml")
HELD_OUT = Path(__file__).with_name("held_out.txt")
PACK = CACHE / "cutouts.npz"

LONGEST, SHORTEST = 224, 96  # pixels: what larger pictures are shrunk to, what is too small
ARCHIVES = CACHE / "sources"
SEED = "edgevlm-tiny-3"
# Chosen so that about 15 % of all pictures are held out: not every group can be.
HELD_OUT_SHARE = 0.17

# Emoji families with more than one edition.
EDITIONS = ("noto", "emojione", "fluent")

# Folders of clip art that hold signs, patterns, interface icons, maps and scenes.
NOT_THINGS = re.compile(
    r"^(computer/(icons|buttons|folders|diagrams|network)|shapes|signs_and_symbols|special|logos|"
    r"recreation/(games|religion)|people/(smilies|stickmen)|decorations|"
    r"transportation/(aiga-symbols|roadsigns)|geography/(?!astronomy)|unsorted/duplicates)"
)
STAMPS_NOT_THINGS = re.compile(r"^(symbols|town/flags|town/roadsigns/(no_|t-|cross|round|rail))")


@dataclass(frozen=True, slots=True)
class Cutout:
    """A picture of one thing, `rgba` uint8 [h, w, 4], trimmed to its alpha box."""

    key: str
    concept: int
    source: str
    photographic: bool
    held_out: bool
    rgba: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    scheme: str
    package: str
    version: str
    sha256: str
    family: str
    licence: str
    attribution: str

    def archive(self) -> Path:
        """The package's archive, fetched and checked."""
        return checked(fetch(self.scheme, self.package, self.version, ARCHIVES), self.sha256)

    def unpacked(self) -> Path:
        """The files of a Debian package."""
        root = ARCHIVES / self.name
        return root if root.exists() else unpack_deb(self.archive(), root)


@dataclass(frozen=True, slots=True)
class _Found:
    key: str
    concept: int
    source: Source
    photographic: bool
    rgba: NDArray[np.uint8]


def load_sources() -> list[Source]:
    tables = tomllib.loads(SOURCES.read_text(encoding="utf-8"))["source"]
    return [Source(**table) for table in tables]


def load_cutouts() -> list[Cutout]:
    """Every packed picture; makes the pack first where there is none."""
    if not PACK.exists():
        make_pack()
    with np.load(PACK) as pack:
        columns = [pack[name].tolist() for name in ("keys", "concepts", "photographic", "held_out")]
        ends, data = pack["ends"], pack["png"].tobytes()
    starts = np.concatenate([[0], ends[:-1]])
    return [
        Cutout(key, concept, key.split("/")[0], photographic, held_out, _decoded(data[start:end]))
        for key, concept, photographic, held_out, start, end in zip(
            *columns, starts, ends, strict=True
        )
    ]


def make_pack() -> None:
    found = list(_distinct(_all_pictures()))
    groups = group(
        [f.rgba for f in found],
        [f.concept for f in found],
        [series(f.key, f.concept, f.source.family) for f in found],
    )
    keys = np.array([f.key for f in found])
    if not HELD_OUT.exists():
        drawn = draw_held_out(groups, np.array([f.concept for f in found]))
        HELD_OUT.write_text("".join(f"{key}\n" for key in sorted(keys[drawn])), encoding="utf-8")
    held_out = np.isin(keys, HELD_OUT.read_text(encoding="utf-8").split())
    usable = held_out | ~np.isin(groups, groups[held_out])
    found = [f for f, use in zip(found, usable, strict=True) if use]
    pngs = [_encoded(f.rgba) for f in found]
    np.savez(
        PACK,
        keys=keys[usable],
        concepts=np.array([f.concept for f in found]),
        photographic=np.array([f.photographic for f in found]),
        held_out=held_out[usable],
        ends=np.cumsum([len(png) for png in pngs]),
        png=np.frombuffer(b"".join(pngs), np.uint8),
    )


def series(key: str, concept: int, family: str) -> str:
    """What pictures have in common that may be one drawing twice, whatever they look like.

    Later editions of an emoji family redraw the same picture. In clip art and stamps, file names
    that differ only in a number or in `bw` are one artist's variations.
    """
    if family in ("stamps", "openclipart"):
        return family + re.sub(r"_bw(?=_)|_bw$|[\d_]", "", key.rsplit("/", 1)[1])
    return f"{family}/{concept}" if family in EDITIONS else key


def _all_pictures() -> Iterator[_Found]:
    captions = Captions(load_concepts())
    for source in load_sources():
        if source.name == "stamps":
            yield from _stamps(source, captions)
        elif source.name == "openclipart":
            yield from _clip_art(source, captions)
        else:
            yield from _icons(source, captions)


def _stamps(source: Source, captions: Captions) -> Iterator[_Found]:
    root = source.unpacked() / "usr/share/tuxpaint/stamps"
    for text in sorted(root.rglob("*.txt")):
        name = text.relative_to(root).with_suffix("").as_posix()
        key = f"{source.name}/{name}"
        sentence = re.split(
            r"[.!?(,\u2013\u2014]", text.read_text(encoding="utf-8").split("\n")[0]
        )[0]
        row = captions.by_key(key)
        if row is None and not STAMPS_NOT_THINGS.match(name):
            row = captions.whole(sentence)
            row = captions.head(sentence) if row is None else row
            row = captions.leading(text.stem) if row is None else row
        file = next(
            (f for f in (text.with_suffix(".png"), text.with_suffix(".svg")) if f.exists()), None
        )
        if row is None or row < 0 or file is None:
            continue
        rgba = _read(file)
        if rgba is not None:
            drawn = "cartoon" in name or file.suffix == ".svg" or not _many_colours(rgba)
            yield _Found(key, row, source, not drawn, rgba)


def _clip_art(source: Source, captions: Captions) -> Iterator[_Found]:
    root = source.unpacked() / "usr/share/openclipart/png"
    for file in sorted(root.rglob("*.png")):
        name = file.relative_to(root).with_suffix("").as_posix()
        if NOT_THINGS.match(name):
            continue
        key = f"{source.name}/{name}"
        row = captions.by_key(key)
        row = captions.leading(file.stem) if row is None else row
        if row is not None and row >= 0:
            rgba = _read(file)
            if rgba is not None:
                yield _Found(key, row, source, False, rgba)


def _icons(source: Source, captions: Captions) -> Iterator[_Found]:
    """The icons of one package in Iconify's JSON format: SVG bodies by name."""
    tables = json.loads(npm_files(source.archive())["package/icons.json"])
    for name, icon in sorted(tables["icons"].items()):
        key = f"{source.name}/{name}"
        caption = re.sub(r"-\d+$", "", name)
        row = captions.by_key(key)
        row = captions.whole(caption) if row is None else row
        if row is None or row < 0:
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", tables.get("width", 16))
        height = icon.get("height", tables.get("height", 16))
        body = icon["body"].replace("currentColor", "#000")
        rgba = _trimmed(
            _rasterised(
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}">{body}</svg>'
            )
        )
        if rgba is not None:
            yield _Found(key, row, source, False, rgba)


def _rasterised(svg: str) -> Image.Image:
    from resvg_py import svg_to_bytes

    data = bytes(svg_to_bytes(svg_string=svg, width=LONGEST + 32))
    return Image.open(io.BytesIO(data)).convert("RGBA")


def _read(file: Path) -> NDArray[np.uint8] | None:
    try:
        if file.suffix == ".svg":
            return _trimmed(_rasterised(file.read_text("utf-8")))
        with Image.open(file) as image:
            image = image.convert("RGBA")
    except (ValueError, Image.DecompressionBombError):  # an SVG without a size; a poster
        return None
    image.thumbnail((1024, 1024))
    return _trimmed(image)


def _trimmed(image: Image.Image) -> NDArray[np.uint8] | None:
    """The picture [h, w, 4] cut to its alpha box and shrunk, or None where it can't be used."""
    rgba = np.array(image)
    if rgba[..., 3].min() > 200:
        rgba = _without_paper(image)
    solid = rgba[..., 3] > 24
    if not 0.02 < solid.mean() < 0.98:
        return None
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape[:2]
    if max(height, width) < SHORTEST // 2 or min(height, width) * 12 < max(height, width):
        return None
    # Colours under zero alpha would bleed into the edge when shrinking, hence premultiplied.
    small = Image.fromarray(box).convert("RGBa")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    return np.array(small.convert("RGBA"))


def _without_paper(image: Image.Image) -> NDArray[np.uint8]:
    """Make white that touches the border transparent."""
    marker = (255, 0, 254)
    flooded = Image.new("RGB", (image.width + 2, image.height + 2), "white")
    flooded.paste(image.convert("RGB"), (1, 1))
    ImageDraw.floodfill(flooded, (0, 0), marker, thresh=24)
    paper = (np.array(flooded)[1:-1, 1:-1] == marker).all(-1)
    rgba = np.array(image)
    rgba[paper, 3] = 0
    return rgba


def _many_colours(rgba: NDArray[np.uint8]) -> bool:
    """Whether it has the shades of a photograph: most pixels differ from the one beside them."""
    colours = rgba[..., :3].astype(int)
    solid = (rgba[:, 1:, 3] > 250) & (rgba[:, :-1, 3] > 250)
    differs = np.abs(np.diff(colours, axis=1)).sum(-1) > 3
    return bool(solid.any()) and float(differs[solid].mean()) > 0.6


def _distinct(pictures: Iterator[_Found]) -> Iterator[_Found]:
    seen = set()
    for picture in pictures:
        digest = hashlib.sha256(picture.rgba.tobytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            yield picture


def draw_held_out(groups: NDArray[np.int64], concepts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Draw pictures [n] to hold out: whole groups, in an order that their numbers decide."""
    held_out = np.zeros(len(groups), bool)

    def lot(label: int) -> float:
        digest = hashlib.sha256(f"{SEED}/{label}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    for label in sorted(set(groups.tolist()), key=lot):
        if lot(label) > HELD_OUT_SHARE:
            break
        members = groups == label
        others = ~members & ~held_out
        if np.isin(concepts[members], concepts[others]).all():
            held_out |= members
    return held_out


def _encoded(rgba: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _decoded(png: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def contact_sheet(
    cutouts: list[Cutout], concepts: list[Concept], path: Path, columns: int = 14, side: int = 96
) -> None:
    """Write the pictures in a grid, each over its concept's name."""
    cell = side + 14
    rows = -(-len(cutouts) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for index, cutout in enumerate(cutouts):
        image = Image.fromarray(cutout.rgba)
        image.thumbnail((side, side))
        x, y = index % columns * cell, index // columns * cell
        sheet.paste(image, (x, y), image)
        draw.text((x, y + side), concepts[cutout.concept].name[:18], "red")
    sheet.save(path)


def main() -> None:
    make_pack()
    cutouts, concepts = load_cutouts(), load_concepts()
    generator = np.random.default_rng(0)
    print("source | pictures | held out\n--- | --- | ---")
    for source in load_sources():
        mine = [c for c in cutouts if c.source == source.name]
        print(source.name, len(mine), sum(c.held_out for c in mine), sep=" | ")
        picked = generator.permutation(len(mine))[:140]
        contact_sheet([mine[i] for i in picked], concepts, CACHE / f"sheet-{source.name}.png")
    print("all", len(cutouts), sum(c.held_out for c in cutouts), sep=" | ")
    train = Counter(c.concept for c in cutouts if not c.held_out)
    test = Counter(c.concept for c in cutouts if c.held_out)
    print(f"{len(concepts)} concepts, {len(train)} with training pictures, {len(test)} in the test")
    print(f"held-out pictures with a near-duplicate in training: {leaks(cutouts)}")


if __name__ == "__main__":
    main()
