"""Colours and materials: what they are called, and how they are drawn.

A colour is named by the nearest of a few prototypes in CIELAB. Prototypes without a name lie
between the names (teal, magenta, olive, beige, maroon): of such colours nothing is said, and
shapes are never drawn in them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from seen import COLOURS, MATERIALS, SURFACES

# sRGB, chosen by eye.
PROTOTYPES = {
    "red": "ff0000 dc141e b80f18 e63c32 c8283c f02828",
    "orange": "ff8c00 ffa500 f07814 ff781e e67e22",
    "yellow": "ffff00 ffdc00 fae650 ffeb3b f4d03f fff176",
    "green": "008000 00ff00 32a03c 145a1e 78c850 96e678 2ecc71 6b8e23 4caf50 1b7a3d",
    "blue": "0000ff 1e5adc 141e78 4696f0 78b4fa 000080 2874a6 3c3cd2 5dade2 87ceeb 324b96",
    "purple": "800080 9632c8 5a1482 b464dc 4b0082 8e44ad 7d3cff 6a3d9a",
    "pink": "ffc0cb ff69b4 ff96be ff1493 f78fb3 f8a5c2",
    "brown": "8b4513 784618 5a3214 a0643c 654321 6f4e37 4e2f1a 935f37",
    "black": "000000 191919 0f0f14 241f1f",
    "white": "ffffff f7f7f7 fffaf5 f4f8ff",
    "grey": "808080 646464 a0a0a0 b4b4b4 727880 8c8782 969ca5 555555",
    # Teal and cyan; magenta; olive and khaki; beige, skin and gold; maroon; lime yellow;
    # coral; dark tints; violet blue and sea green; shades between black, grey
    # and white; pale tints.
    "": "008080 00ffff 40c8c8 20a098 00a8a8 7fffd4 5fb0b0 2f6f6f a0e0e0 b0f0e8 "
    "ff00ff d020b0 c71585 a03070 808000 b5b045 bdb76b 9a8f40 5c5c20 "
    "d2b48c f5f5dc deb887 d4af37 c8a040 b8860b e8c39e ffdbac e0b070 f0d8b0 c09870 "
    "800000 600818 a52a2a 902830 c8e632 d0ff40 b8d838 ff7f6a ff8080 fa8072 e9967a ffa07a c86450 "
    "d04a10 c05828 b0501a 001830 10301a 301010 2a1838 38383c 303030 404040 cdcdcd d8d8d8 e0e0e0 "
    "c8c8d8 b0b8cc 98a8c0 9c8c80 b0a090 705c50 a8b8a0 70806c 606878 807090 b0a0b8 988088 b8a0a0 "
    "5030f0 4020ff 6450ff 28d8a8 30e0c0 30b088 "
    "d8e8f8 c0d8f0 d8f0d8 c8e8c0 f8e0e4 e8d8f0 fffac8 fff0c0 ffe4c4 dda0dd d8a8e0 c8a8f0 aaaaff",
}
_LEVELS = 32  # of each channel in the table of names
# A colour that shapes are drawn in lies this much nearer to its own name than to any other.
_CLEARLY = 0.62
# At least this share of a thing's pixels goes by one name, or it has no one colour.
DOMINANT = 0.6


def to_lab(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """CIELAB (D65) of sRGB levels 0..255, float32 [..., 3]."""
    v = rgb.astype(np.float32) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
    )
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


@cache
def _table() -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.bool_]]:
    """Name [32768] of each cell of the table or -1, its sRGB centre [32768, 3], and whether a
    thing in it is clearly of that colour [32768]."""
    steps = (np.arange(_LEVELS, dtype=np.float32) + 0.5) * 256 / _LEVELS
    centres = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_lab(centres)
    distances = []
    for colour in (*COLOURS, ""):
        apart = lab[:, None] - to_lab(_prototypes(colour))[None]
        distances.append(np.sqrt((apart**2).sum(-1)).min(1))
    ordered = np.sort(np.stack(distances), axis=0)
    nearest = np.argmin(np.stack(distances), axis=0)
    name = np.where(nearest < len(COLOURS), nearest, -1).astype(np.int8)
    colourless = np.isin(nearest, [COLOURS.index(c) for c in ("black", "white", "grey")])
    clear = (ordered[0] < _CLEARLY * ordered[1]) & (ordered[0] < np.where(colourless, 6, 14))
    clear &= name >= 0
    return name, centres, clear


def name_colours(rgb: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Row of COLOURS or -1 [...] of sRGB pixels [..., 3]."""
    r, g, b = np.moveaxis(rgb // (256 // _LEVELS), -1, 0).astype(np.int32)
    return _table()[0][(r * _LEVELS + g) * _LEVELS + b]


def dominant_colour(rgba: NDArray[np.uint8]) -> int:
    """The colour that most opaque pixels of [h, w, 4] go by, or -1 where there is no such one."""
    step = max(1, max(rgba.shape) // 64)  # some of the pixels stand for all
    rgba = rgba[::step, ::step]
    opaque = rgba[rgba[..., 3] > 200][:, :3]
    if not len(opaque):
        return -1
    names = name_colours(opaque)
    counts = np.bincount(names[names >= 0], minlength=len(COLOURS))
    best = int(counts.argmax())
    return best if counts[best] >= DOMINANT * len(opaque) else -1


def _prototypes(colour: str) -> NDArray[np.float32]:
    hexes = PROTOTYPES[colour].split()
    return np.array([[int(h[i : i + 2], 16) for i in (0, 2, 4)] for h in hexes], np.float32)


@cache
def _shades(colour: int) -> NDArray[np.float32]:
    name, centres, clear = _table()
    """Clear shades float32 [n, 3], half of them the prototypes: these are what people pick."""
    found, common = centres[clear & (name == colour)], _prototypes(COLOURS[colour])
    return np.concatenate([found, np.resize(common, (len(found), 3))])


def shade(rng: np.random.Generator, colour: int) -> tuple[int, int, int]:
    """One of the shades that clearly go by a colour of COLOURS."""
    shades = _shades(colour)
    near = shades[rng.integers(len(shades))] + rng.uniform(-3, 3, 3)
    r, g, b = near.clip(0, 255).round()
    return int(r), int(g), int(b)


def draw_surface(rng: np.random.Generator, surface: int, size: int) -> Image.Image:
    """RGB [size, size] of a row of SURFACES."""
    if surface < len(COLOURS):
        return Image.new("RGB", (size, size), shade(rng, surface))
    return MATERIAL_DRAWERS[SURFACES[surface]](rng, size)


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise float32 [h, w] in about 0..1 with so many cells down and across."""
    grid = rng.random((max(2, cells[0]), max(2, cells[1])), np.float32)
    image = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


def blend(mix: np.ndarray, low: np.ndarray, high: np.ndarray) -> Image.Image:
    """RGB image between two colours [3], as `mix` [h, w] in 0..1 says."""
    mix = mix.clip(0, 1)[..., None]
    return Image.fromarray((low + mix * (high - low)).clip(0, 255).astype(np.uint8))


def wood(rng: np.random.Generator, size: int) -> Image.Image:
    """Grain: rings of a distorted distance, stretched along one side, in planks or not."""
    x = np.linspace(0, 1, size, dtype=np.float32)[None]
    wobble = noise(rng, (size, size), (int(rng.integers(2, 5)), 2))
    rings = np.sin((x * rng.uniform(4, 12) + wobble * rng.uniform(2, 7)) * 2 * np.pi)
    fibres = noise(rng, (size, size), (4, size // 3))
    mix = 0.5 + 0.22 * rings + rng.uniform(0.3, 0.8) * (fibres - 0.5)
    base = np.array([(150, 100, 55), (185, 135, 80), (115, 70, 38), (205, 160, 105)])[
        rng.integers(4)
    ]
    dark = base * rng.uniform(0.5, 0.72)
    if rng.random() < 0.4:
        planks = rng.integers(2, 6)
        mix = np.where((x * planks) % 1 < 0.035, -0.4, mix)
    image = blend(mix, dark, base * 1.08)
    return image.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.5 else image


def metal(rng: np.random.Generator, size: int) -> Image.Image:
    """Brushed steel, brass or copper: hairlines across bands of reflected light."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    bands = 0.5 + 0.5 * np.sin(along * rng.uniform(4, 11) + rng.uniform(0, 6))
    hairlines = noise(rng, (size, size), (size // 2, 3)) - 0.5
    shine = bands ** rng.uniform(1, 4)
    mix = 0.1 + 0.8 * shine + rng.uniform(0.05, 0.3) * hairlines
    tints = ((205, 208, 214), (205, 208, 214), (190, 196, 206), (218, 190, 110), (214, 150, 110))
    base = np.array(tints[rng.integers(len(tints))], np.float32)
    return blend(mix, base * rng.uniform(0.35, 0.55), np.minimum(base * 1.22, 255))


def stone(rng: np.random.Generator, size: int) -> Image.Image:
    """Granite grains, or blocks with joints."""
    coarse = noise(rng, (size, size), (5, 5)) - 0.5
    middle = noise(rng, (size, size), (size // 8, size // 8)) - 0.5
    fine = noise(rng, (size, size), (size // 2, size // 2)) - 0.5
    mix = 0.5 + rng.uniform(0.2, 0.5) * coarse + rng.uniform(0.3, 0.6) * middle + 0.5 * fine
    if rng.random() < 0.4:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        rows = float(rng.integers(3, 7))
        shifted = x + 0.5 / rows * (np.floor(y * rows) % 2)
        x = shifted + 0.05 * middle / rows
        joint = ((y + 0.05 * coarse / rows) * rows % 1 < 0.09) | (x * rows / 2 % 1 < 0.045)
        mix = np.where(joint, mix - 0.55, mix)
    tints = ((150, 148, 142), (132, 134, 138), (165, 155, 140), (120, 118, 115))
    base = np.array(tints[rng.integers(len(tints))], np.float32)
    return blend(mix, base * 0.5, base * 1.35)


MATERIAL_DRAWERS = dict(zip(MATERIALS, (wood, metal, stone), strict=True))
