"""Printed words: the list of those that can be read, the fonts, and the drawing of one word.

    python recipes/tiny/printed.py     # fetches the fonts, about 35 MB of Debian packages

words.txt holds the 9,000 most frequent words of 3 to 8 letters of Debian's wamerican-small
2020.12.07-2 (SCOWL; Kevin Atkinson's licence), in the order of wordfreq 3.1.1 (CC BY-SA 4.0),
without names, offensive words and words of more than four tokens; then such words of
concepts.txt as are in wamerican 2020.12.07-2; then the numbers 0 to 100.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from packages import checked, fetch, unpack_deb
from PIL import Image, ImageDraw, ImageFont
from weights import CACHE

WORDS = Path(__file__).with_name("words.txt")
FONTS = CACHE / "fonts"
# Weights too thin to be read small, symbols and key caps.
_UNREADABLE = ("Thin", "Hairline", "ExtraLight", "_K.", "_DR.", "Symbols", "D050000L", "MathTeX")
# Joined letters: words in capitals do not occur in them.
_SCRIPTS = ("DancingScript", "lobster", "Z003")


@dataclass(frozen=True, slots=True)
class FontPackage:
    name: str
    version: str
    sha256: str
    held_out: bool = False


# Look-alikes are on one side: Hack and DejaVu, Carlito and Lato. Licences: OFL-1.1, but Bitstream
# Vera for DejaVu and Hack, Apache-2.0 for Open Sans, Roboto and Roboto Slab, AGPL-3 and GPL-2
# with the font exception for URW and Purisa.
PACKAGES = (
    FontPackage(
        "fonts-cantarell",
        "0.303.1-1",
        "8fdf5687d9e2ce70456664519025a6b48fbaaadbc5b1cfbf8b09f72c2dc5f09b",
    ),
    FontPackage(
        "fonts-comfortaa",
        "3.001-3",
        "33c65e81b201177a56e6528f7ea5fd6b19f2db0bb6f4f95346b9483691851929",
    ),
    FontPackage(
        "fonts-comic-neue",
        "2.51-4",
        "6f002dc90d62fde01a2b51f333c09dc6c21ffbfc6ca22d05a84cc049b083c826",
        held_out=True,
    ),
    FontPackage(
        "fonts-courier-prime",
        "0+git20190115-3",
        "6f827dd190446abbf83972f01e3f0db2c980e73bd6fb85b56d9d9a8f1755149f",
    ),
    FontPackage(
        "fonts-crosextra-caladea",
        "20200211-1",
        "dd51af7629df5a2f3799f889cdf63d5abdda32e94e5de59398f728d98604a240",
    ),
    FontPackage(
        "fonts-crosextra-carlito",
        "20220224-1",
        "673689e3a887cd150ca5018c26e1a4162709add3a1bdc0a2527af6fd073980d7",
        held_out=True,
    ),
    FontPackage(
        "fonts-dancingscript",
        "1.2-2",
        "987b8182611e1f3d9e7b19a82787614470dd8c4ed894a4dedbebc2308703b216",
    ),
    FontPackage(
        "fonts-dejavu-core",
        "2.37-6",
        "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
    ),
    FontPackage(
        "fonts-dejavu-extra",
        "2.37-6",
        "6cb7ed32de6df209c065e9e5cc5154a2f36d4c334d9a0af534fabb67d38ab75b",
    ),
    FontPackage(
        "fonts-ebgaramond",
        "0.016+git20210310.42d4f9f2-1",
        "2780e32df19b909823425b3e21c2f2f2a1717bbdd96f33fc59a252a308903fa2",
        held_out=True,
    ),
    FontPackage(
        "fonts-firacode",
        "6.2-2",
        "a69952a1556e7635d029b35dbc903593a3b78cbd39d3899bf0c4fdfbc8d55245",
    ),
    FontPackage(
        "fonts-hack",
        "3.003-3",
        "ee85559100f4657f7214f23462cf43100d233858f468e3efa0c0a8500f2b7382",
    ),
    FontPackage(
        "fonts-inconsolata",
        "001.010-6",
        "bb5015c631cd47aa7d9d6e0ecd101f0e1234300f935e7719ea32ed9b640f0ac4",
    ),
    FontPackage(
        "fonts-lato",
        "2.0-2.1",
        "86f50af146a7df9eca4e69f0262e73e708908435ebfa833df797adfa08843bc5",
        held_out=True,
    ),
    FontPackage(
        "fonts-league-spartan",
        "2.210-1",
        "4d1fc96447aa615855e8b7a0afc534c761446ef2ddc6a6259382ec99f1f8929e",
    ),
    FontPackage(
        "fonts-liberation",
        "1:1.07.4-11",
        "efd381517f958b01969343634ffcbdd60056be7779af84c6f53a005090430204",
    ),
    FontPackage(
        "fonts-linuxlibertine",
        "5.3.0-6",
        "5c77471e910189b3e4e2eda2b1c5f549ddcaf4de8f9640b97773643970d29087",
    ),
    FontPackage(
        "fonts-lobster",
        "2.0-2.1",
        "9379824d3f3bc44844aa07cb9ad4e6bfd99a785e34668c5dba410947b715dc1b",
    ),
    FontPackage(
        "fonts-open-sans",
        "1.11-2",
        "ed8c4258af6c23e5105fa18940544f060f3c9664fbe881f25130fe0c65bc1485",
    ),
    FontPackage(
        "fonts-play",
        "1.002+20150307.1-0.1",
        "274f6e95f668f1fff3441056e968a4c947ac975b29000d9c513bd06bb7f7f9d4",
        held_out=True,
    ),
    FontPackage(
        "fonts-quicksand",
        "0.2016-2.1",
        "1175e5c64f116887b37ec3c8faea1f411bdef356580bc22298c3c9da75fac120",
    ),
    FontPackage(
        "fonts-roboto-slab",
        "1.100263+20170512-2",
        "bbc315d672de850a7c980bc2283e41b4f322fd5a2b2bb2d00f07c15983b950b1",
        held_out=True,
    ),
    FontPackage(
        "fonts-roboto-unhinted",
        "2:0~20170802-3",
        "f89cf7d8a589489daecf750031ec50456ab3e648d49ff544f0f08753268fbd91",
    ),
    FontPackage(
        "fonts-tlwg-purisa-ttf",
        "1:0.7.3-1",
        "e9081a871f561b19529659e984e9cdb3f2342b776787c6af9f312e862ff4e36d",
    ),
    FontPackage(
        "fonts-urw-base35",
        "20200910-7",
        "93e4997c99c4c31ea88c5d37e2259af0a0c826b9358931d5a69f794f7f0c73ac",
    ),
    FontPackage(
        "fonts-vollkorn",
        "4.105-2",
        "0c7039de3ede6c96727829635c5b10a536114029cbddf98e14716578d936307f",
    ),
)


@cache
def load_words() -> list[str]:
    return WORDS.read_text(encoding="utf-8").split()


def fetch_fonts() -> None:
    """Unpack the fonts of every package into build/tiny/fonts/{training,held_out}/."""
    for package in PACKAGES:
        folder = FONTS / package.name
        if folder.exists():
            continue
        deb = checked(fetch("apt", package.name, package.version, FONTS), package.sha256)
        unpack_deb(deb, folder)


@cache
def load_fonts(*, held_out: bool) -> tuple[Path | None, ...]:
    """The font files of a split; None stands for the one that comes with Pillow, where none has
    been fetched."""
    files = [
        path
        for package in PACKAGES
        if package.held_out == held_out
        for path in sorted((FONTS / package.name).rglob("*.[ot]tf"))
        if not any(part in path.name for part in _UNREADABLE)
    ]
    return tuple(files) or (None,)


@lru_cache(maxsize=512)
def font(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def pick_font(rng: np.random.Generator, *, held_out: bool) -> Path | None:
    """Each family is as likely, however many weights it has."""
    fonts = load_fonts(held_out=held_out)
    families = sorted({_family(path) for path in fonts})
    family = families[rng.integers(len(families))]
    members = [path for path in fonts if _family(path) == family]
    return members[rng.integers(len(members))]


def _family(path: Path | None) -> str:
    return "" if path is None else re.split(r"[-_. ]", path.name)[0]


def draw_word(
    rng: np.random.Generator, word: str, *, held_out: bool, width: int, height: int, aspect: float
) -> Image.Image:
    """The word as a mask "L" cropped to its ink: in one of the fonts of a split and in lower
    case, upper case or capitalised, a little turned and in perspective, at most so large.
    `aspect` is by how much the picture is squashed sideways."""
    path = pick_font(rng, held_out=held_out)
    joined = path is not None and any(part in path.name for part in _SCRIPTS)
    cases = (word, word.capitalize(), word.capitalize() if joined else word.upper())
    text = cases[rng.integers(3)]
    measured = font(path, 64).getbbox(text)
    scale = min(width * aspect**0.5 / measured[2], height / aspect**0.5 / 64)
    size = max(9, round(64 * scale))
    spacing = 0 if joined or rng.random() < 0.8 else round(size * rng.uniform(0.05, 0.25))
    mask = _set(text, font(path, size), spacing)
    box = mask.getbbox() or (0, 0, 1, 1)
    mask = mask.crop(box)
    stretched = max(1, round(mask.width / aspect)), mask.height
    longest = min(1.0, width / stretched[0])
    size_out = max(1, round(stretched[0] * longest)), max(1, round(stretched[1] * longest))
    if size_out != mask.size:
        mask = mask.resize(size_out, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if rng.random() < 0.5:
        mask = _tilted(rng, mask)
    return mask


def _set(text: str, face: ImageFont.FreeTypeFont, spacing: int) -> Image.Image:
    pieces = list(text) if spacing else [text]
    left, _, right, bottom = face.getbbox(text)
    room = Image.new("L", (int(right - min(left, 0)) + spacing * len(text) + 8, int(bottom) + 8))
    draw = ImageDraw.Draw(room)
    x = 4.0 - min(left, 0)
    for piece in pieces:
        draw.text((x, 0), piece, fill=255, font=face)
        x += face.getlength(piece) + spacing
    return room


def _tilted(rng: np.random.Generator, mask: Image.Image) -> Image.Image:
    """Turned by at most 8 degrees and seen a little from the side, cropped to itself again."""
    w, h = mask.size
    angle = np.radians(rng.uniform(-8, 8))
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    corners = np.array([(0, 0), (w, 0), (w, h), (0, h)], float)
    moved = corners @ turn + rng.uniform(-0.12, 0.12, (4, 2)) * h
    moved -= moved.min(0)
    # The map from where a pixel goes to where it came from, as Pillow wants it.
    rows, values = [], []
    for (x, y), (u, v) in zip(moved, corners, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(rows), np.array(values)).tolist()
    size = int(moved[:, 0].max()) + 1, int(moved[:, 1].max()) + 1
    return mask.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def print_word(
    rng: np.random.Generator, picture: Image.Image, word: str, *, held_out: bool, aspect: float
) -> tuple[int, int, int, int]:
    """Print the word somewhere on the picture, on a sign or not; returns its box in pixels."""
    side = picture.width
    widest = int(side * np.exp(rng.uniform(np.log(0.25), np.log(0.95))))
    tallest = int(side * rng.uniform(0.2, 0.6))
    mask = draw_word(rng, word, held_out=held_out, width=widest, height=tallest, aspect=aspect)
    mask.thumbnail((side - 8, side - 8))
    w, h = mask.size
    x, y = (int(rng.integers(2, side - extent - 1)) for extent in (w, h))
    if rng.random() < 0.3:
        x, y = (side - w) // 2, (side - h) // 2
    box = (x, y, x + w, y + h)
    ground = _luminances(picture, box)
    if rng.random() < 0.3 or ground[1] - ground[0] > 110:
        _draw_sign(rng, picture, box)
        ground = _luminances(picture, box)
    picture.paste(_ink(rng, *ground), (x, y), mask)
    return box


def _luminances(picture: Image.Image, box: tuple[int, int, int, int]) -> tuple[float, float]:
    """The dark and the light end of a part of the picture, 0..255."""
    small = np.asarray(picture.crop(box).convert("L").resize((32, 12), Image.Resampling.BOX))
    low, high = np.percentile(small, (4, 96))
    return float(low), float(high)


def _ink(rng: np.random.Generator, low: float, high: float) -> tuple[int, int, int]:
    """A colour that is readable on what lies between two luminances."""
    if rng.random() < 0.6:
        for _ in range(12):
            r, g, b = (int(v) for v in rng.integers(0, 256, 3))
            luminance = 0.299 * r + 0.587 * g + 0.114 * b
            if luminance < low - 75 or luminance > high + 75:
                return r, g, b
    return (15, 15, 18) if low > 255 - high else (250, 250, 248)


def _draw_sign(
    rng: np.random.Generator, picture: Image.Image, box: tuple[int, int, int, int]
) -> None:
    """A plate or label of one colour behind a box, with a border or not."""
    margin = 4 + int(rng.uniform(0.1, 0.5) * (box[3] - box[1]))
    plate = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    if rng.random() < 0.4:
        colour = (245, 245, 240)
    edge = None if rng.random() < 0.5 else tuple(int(v) for v in rng.integers(0, 256, 3))
    radius = int(margin * rng.uniform(0, 1.2)) if rng.random() < 0.5 else 0
    ImageDraw.Draw(picture).rounded_rectangle(
        plate, radius, fill=colour, outline=edge, width=max(2, margin // 5)
    )


if __name__ == "__main__":
    fetch_fonts()
