"""How Idefics3 and SmolVLM cut a picture: tiles of the encoder's size, and the whole again.

The steps and their roundings are those of transformers' `Idefics3ImageProcessor`, so that
the tiles are the same to the pixel: enlarge or shrink to the longest edge, stretch to whole
tiles, cut, and put the whole picture, squeezed into one tile, last.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.engine.prompt import ImageInput
from edgevlm.families.base import Detail, check_budget
from edgevlm.families.config_files import ConfigFile
from edgevlm.media.image import pixels_key

_MAX_EDGE = 4096  # the reference shrinks larger pictures, whatever the configuration says
_MAX_TILES_A_SIDE = 16
_IMAGENET_STANDARD = 0.5


@dataclass(frozen=True, slots=True)
class TilingSettings:
    """The image processor's settings. Sizes are in pixels, `tokens` are those of one tile.

    A sample x (0 to 255) becomes (x * scale - mean) / std, channel by channel.
    """

    tile: int
    tokens: int
    longest_edge: int | None
    split: bool
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, processor: ConfigFile, tile: int, tokens: int) -> TilingSettings:
        """Read an image processor's configuration. Raises ModelCorrupt."""
        declared = processor.nested("max_image_size").positive("longest_edge")
        if declared > _MAX_EDGE:
            raise processor.corrupt(f"cuts tiles of {declared} pixels, above {_MAX_EDGE}")
        if declared != tile:
            raise processor.corrupt(f"cuts tiles of {declared} pixels, the encoder takes {tile}")
        longest_edge = None
        if processor.flag("do_resize", True):
            longest_edge = processor.nested("size").positive("longest_edge")
            limit = min(_MAX_EDGE, _MAX_TILES_A_SIDE * tile)
            if longest_edge > limit:
                raise processor.corrupt(f"resizes to {longest_edge} pixels, above {limit}")
        normalize = processor.flag("do_normalize", True)
        rescale = processor.flag("do_rescale", True)
        std = processor.numbers("image_std", 3, _IMAGENET_STANDARD)
        if not all(std):
            raise processor.corrupt("divides by a zero in 'image_std'")
        resample = processor.fields.get("resample", Image.Resampling.LANCZOS)
        if resample not in list(Image.Resampling):
            raise processor.corrupt(f"names no filter of Pillow as 'resample': {resample!r}")
        return cls(
            tile=tile,
            tokens=tokens,
            longest_edge=longest_edge,
            split=processor.flag("do_image_splitting", True),
            resample=int(resample),
            scale=processor.numbers("rescale_factor", 1, 1 / 255)[0] if rescale else 1.0,
            mean=processor.numbers("image_mean", 3, _IMAGENET_STANDARD) if normalize else (0,) * 3,
            std=std if normalize else (1,) * 3,
        )


def prepare(
    pixels: NDArray[np.uint8],
    settings: TilingSettings,
    detail: Detail = "auto",
    budget: int | None = None,
) -> ImageInput:
    """Cut RGB uint8 [H, W, 3] into tiles: the rows from the top, the whole picture last.

    Raises UsageError where one tile is above the budget.
    """
    settings = replace(settings, split=_splits(settings, detail))
    if budget is not None:
        height, width, _ = pixels.shape
        settings = _within(settings, (width, height), budget)
    tiles, grid = _cut(Image.fromarray(pixels), settings)
    fingerprint = hashlib.sha256(f"{pixels_key(pixels)} idefics3 {settings}".encode())
    side = settings.tile
    return ImageInput(
        pixel_values=_normalized(tiles, settings),
        # Every tile is full: nothing is padded.
        pixel_mask=np.ones((len(tiles), side, side), dtype=np.bool_),
        grid=grid,
        n_tokens=len(tiles) * settings.tokens,
        key=fingerprint.hexdigest(),
    )


def _splits(settings: TilingSettings, detail: Detail) -> bool:
    return settings.split if detail == "auto" else detail == "high"


def _within(settings: TilingSettings, size: tuple[int, int], budget: int) -> TilingSettings:
    """Fewer tiles where need be, in the same way: by enlarging the picture less."""
    check_budget(budget, settings.tokens)
    if not settings.split:
        return settings
    most = budget // settings.tokens
    if tile_count(settings, size) <= most:
        return settings
    for side in range((settings.longest_edge or max(size)) // settings.tile, 1, -1):
        smaller = replace(settings, longest_edge=side * settings.tile)
        if tile_count(smaller, size) <= most:
            return smaller
    return replace(settings, split=False)


def tile_count(settings: TilingSettings, size: tuple[int, int]) -> int:
    """Into how many tiles a picture of (width, height) is cut, the whole one included."""
    if settings.longest_edge is not None:
        size = _with_longest_edge(size, settings.longest_edge)
    width, height = _in_whole_tiles(size, settings.tile)
    tiles = (width // settings.tile) * (height // settings.tile)
    return tiles + 1 if tiles > 1 else 1


def _cut(
    picture: Image.Image, settings: TilingSettings
) -> tuple[list[Image.Image], tuple[int, int]]:
    tile = settings.tile

    def resized(size: tuple[int, int]) -> Image.Image:
        return picture if picture.size == size else picture.resize(size, settings.resample)

    if settings.longest_edge is not None:
        picture = resized(_with_longest_edge(picture.size, settings.longest_edge))
    if not settings.split:
        return [resized((tile, tile))], (0, 0)
    picture = resized(_in_whole_tiles(picture.size, tile))
    columns, rows = picture.width // tile, picture.height // tile
    if rows == columns == 1:
        return [picture], (0, 0)
    tiles = [
        picture.crop((left, top, left + tile, top + tile))
        for top in range(0, picture.height, tile)
        for left in range(0, picture.width, tile)
    ]
    return [*tiles, resized((tile, tile))], (rows, columns)


def _with_longest_edge(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) with the longer side `longest` and the other one even."""
    width, height = size
    aspect = width / height
    if width >= height:
        return longest, max(1, _even(int(longest / aspect)))
    return max(1, _even(int(longest * aspect))), longest


def _even(length: int) -> int:
    return length + length % 2


def _in_whole_tiles(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """(width, height) rounded up to tiles; the shorter side follows the longer one's change."""
    width, height = size
    aspect = width / height
    if width >= height:
        width = _round_up(width, tile)
        return width, _round_up(int(width / aspect), tile)
    height = _round_up(height, tile)
    return _round_up(int(height * aspect), tile), height


def _round_up(length: int, tile: int) -> int:
    return math.ceil(length / tile) * tile


def _normalized(tiles: list[Image.Image], settings: TilingSettings) -> NDArray[np.float32]:
    """float32 [n_tiles, 3, tile, tile], each sample looked up in its channel's 256 values."""
    samples = np.arange(256) * settings.scale
    table = ((samples - np.array(settings.mean)[:, None]) / np.array(settings.std)[:, None]).astype(
        np.float32
    )
    values = np.empty((len(tiles), 3, settings.tile, settings.tile), dtype=np.float32)
    for tile, target in zip(tiles, values, strict=True):
        rgb = np.asarray(tile)
        for channel in range(3):
            target[channel] = table[channel][rgb[:, :, channel]]
    return values
