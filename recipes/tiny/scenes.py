"""Made-up pictures with the truth about them, for training and for the held-out test.

    python recipes/tiny/scenes.py --count 40    # a contact sheet: build/tiny/scenes.png

The same generator state draws the same picture. Where the packs of cutouts and photographs have
not been made, scenes are composed of shapes before drawn backdrops.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass

import backdrops
import numpy as np
import photographs
import pictures
from captions import load_concepts
from charts import draw_chart
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from printed import load_words, print_word
from seen import SORTS, SURFACES, Scene
from stock import Stock
from things import compose
from weights import CACHE

SIDE = 520
SHARES = {"things": 0.56, "text": 0.18, "chart": 0.1, "photo": 0.08, "nothing": 0.08}
# Width over height of pictures before they are squashed into a square.
ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)
ASPECT_SHARES = (0.6, 0.12, 0.1, 0.08, 0.04, 0.04, 0.02)
NUMBER_SHARE = 0.12  # of what is printed

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """`pixels` sRGB [520, 520, 3]; `word_box` is x0, y0, x1, y1 of scene.word in shares of the
    picture, where there is one."""

    scene: Scene
    pixels: NDArray[np.uint8]
    word_box: Box | None = None


class Scenes:
    """Draws pictures of one split. By default of what has been packed; `cutouts` and
    `photographs` replace that."""

    def __init__(
        self,
        *,
        held_out: bool,
        cutouts: Sequence[pictures.Cutout] | None = None,
        photos: Sequence[photographs.Photograph] | None = None,
    ) -> None:
        if cutouts is None:
            cutouts = pictures.load_cutouts() if pictures.PACK.exists() else ()
        if photos is None:
            photos = photographs.load_photographs() if photographs.PACK.exists() else ()
        self._held_out = held_out
        self._stock = Stock([c for c in cutouts if c.held_out == held_out], load_concepts())
        mine = [photo for photo in photos if photo.held_out == held_out]
        self._photos = [photo.rgb for photo in mine]
        self._empty = [photo.rgb for photo in mine if photo.background]
        words = load_words()
        self._words = [word for word in words if not word.isdigit()]
        self._numbers = [word for word in words if word.isdigit()]

    def draw(self, rng: np.random.Generator, sort: str | None = None) -> Sample:
        """A picture of one of SORTS, or of a mix of them; photographs only where there are any."""
        if sort is None:
            sorts = [name for name in SHARES if name != "photo" or self._photos]
            shares = np.array([SHARES[name] for name in sorts])
            sort = sorts[rng.choice(len(sorts), p=shares / shares.sum())]
        picture, scene, box, finest = getattr(self, f"_{sort}")(rng)
        pixels = np.array(augmented(rng, picture, finest))
        return Sample(scene, pixels, None if box is None else _in_shares(box))

    def _things(self, rng: np.random.Generator) -> _Drawn:
        count = int(rng.integers(1, 6))
        items = self._stock.pick(rng, count)
        aspect = _aspect(rng) if not any(item.proportioned for item in items) else 1.0
        picture, things = compose(
            rng, items, aspect, lambda: backdrops.behind_things(rng, self._empty, self._photos)
        )
        smallest = min(t.area for t in things) ** 0.5
        return picture, Scene(SORTS.index("things"), things), None, 24 / smallest

    def _text(self, rng: np.random.Generator) -> _Drawn:
        words = self._numbers if rng.random() < NUMBER_SHARE else self._words
        word = words[rng.integers(len(words))]
        picture = backdrops.behind_things(rng, self._empty, self._photos)
        box = print_word(rng, picture, word, held_out=self._held_out, aspect=_aspect(rng))
        height = (box[3] - box[1]) / SIDE
        return picture, Scene(SORTS.index("text"), word=word), box, 16 / height

    def _chart(self, rng: np.random.Generator) -> _Drawn:
        picture, kind, highest, box = draw_chart(rng, held_out=self._held_out)
        height = (box[3] - box[1]) / SIDE
        return picture, Scene(SORTS.index("chart"), word=str(highest), chart=kind), box, 16 / height

    def _photo(self, rng: np.random.Generator) -> _Drawn:
        if not self._photos:
            raise LookupError("no photographs have been packed: run photographs.py")
        rgb = self._photos[rng.integers(len(self._photos))]
        return backdrops.photograph(rng, rgb, (0.7, 1.0)), Scene(SORTS.index("photo")), None, 160

    def _nothing(self, rng: np.random.Generator) -> _Drawn:
        picture = backdrops.nothing(rng, self._empty, self._photos)
        return picture, Scene(SORTS.index("nothing")), None, 64


# The picture, its truth, the box of its word in pixels, and the least side in pixels at which
# what is in it can still be made out.
_Drawn = tuple[Image.Image, Scene, tuple[int, int, int, int] | None, float]


def _aspect(rng: np.random.Generator) -> float:
    return float(rng.choice(ASPECTS, p=ASPECT_SHARES))


def _in_shares(box: tuple[int, int, int, int]) -> Box:
    x0, y0, x1, y1 = (min(max(v / SIDE, 0.0), 1.0) for v in box)
    return x0, y0, x1, y1


def augmented(rng: np.random.Generator, picture: Image.Image, finest: float) -> Image.Image:
    """The picture as a camera or a small file would have it; never smaller than `finest`."""
    if rng.random() < 0.2 and finest < SIDE:
        side = int(np.exp(rng.uniform(np.log(max(finest, 56)), np.log(SIDE))))
        filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        small = picture.resize((side, side), Image.Resampling.BOX)
        picture = small.resize((SIDE, SIDE), filters[rng.choice(3, p=(0.4, 0.5, 0.1))])
    if rng.random() < 0.15:
        radius = rng.uniform(0.4, min(2.5, 0.4 + 0.25 * SIDE / finest))
        picture = picture.filter(ImageFilter.BoxBlur(radius))
    if rng.random() < 0.25:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.15))
        picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.75, 1.15))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(30, 90)))
        picture = Image.open(buffer).convert("RGB")
    return picture


def contact_sheet(samples: Sequence[Sample], names: Sequence[str], columns: int = 5) -> Image.Image:
    """The pictures at half their size with their boxes, each over its truth."""
    cell, lines = SIDE // 2, 4
    height = cell + 13 * lines
    sheet = Image.new("RGB", (columns * cell, -(-len(samples) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, sample in enumerate(samples):
        x, y = index % columns * cell, index // columns * height
        sheet.paste(Image.fromarray(sample.pixels).resize((cell - 2, cell - 2)), (x, y))
        scene = sample.scene
        boxes = [thing.box for thing in scene.things] + [b for b in (sample.word_box,) if b]
        for x0, y0, x1, y1 in boxes:
            draw.rectangle(
                (x + x0 * cell, y + y0 * cell, x + x1 * cell, y + y1 * cell), None, "red"
            )
        said = [
            f"{SURFACES[t.surface] if t.surface >= 0 else '-'} {names[t.concept]}"
            for t in scene.things
        ]
        said = [f"{SORTS[scene.sort]} {scene.chart} {scene.word}", *said]
        text = "\n".join(", ".join(said[k : k + 2]) for k in range(0, len(said), 2))
        draw.multiline_text((x, y + cell), text, "black", spacing=1)
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--sort", choices=SORTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    scenes = Scenes(held_out=arguments.held_out)
    generator = np.random.default_rng(arguments.seed)
    drawn = [scenes.draw(generator, arguments.sort) for _ in range(arguments.count)]
    CACHE.mkdir(parents=True, exist_ok=True)
    contact_sheet(drawn, [c.name for c in load_concepts()]).save(CACHE / "scenes.png")
