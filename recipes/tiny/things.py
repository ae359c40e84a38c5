"""Putting things into a picture: how large, where, and before what they can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from seen import Thing
from stock import Item

SIDE = 520
SMALLEST = 0.08  # longer side of a thing, as a share of the picture's
LARGEST = {1: 0.95, 2: 0.55, 3: 0.5, 4: 0.44, 5: 0.4}  # by the number of things
_ALPHA = 40  # from which on a pixel belongs to a thing's box
# A thing is seen where at least this share of it differs that much from what is behind.
_SEEN_SHARE, _SEEN_BY = 0.15, 55.0

Place = tuple[int, int]


def compose(
    rng: np.random.Generator,
    items: Sequence[Item],
    aspect: float,
    backdrop: Callable[[], Image.Image],
) -> tuple[Image.Image, tuple[Thing, ...]]:
    """A picture of the items, and where they are. `aspect` is by how much it is squashed
    sideways; backdrops are drawn until all things stand out from one."""
    images = [
        _rendered(rng, item, side, aspect)
        for item, side in zip(items, _sides(rng, len(items)), strict=True)
    ]
    images, places = _arranged(rng, images)
    picture = _contrasting(images, places, backdrop)
    things = []
    for item, image, (x, y) in zip(items, images, places, strict=True):
        picture.paste(image, (x, y), image)
        box = (x / SIDE, y / SIDE, (x + image.width) / SIDE, (y + image.height) / SIDE)
        things.append(Thing(item.concept, item.surface, box))
    return picture, tuple(things)


def _sides(rng: np.random.Generator, count: int) -> list[float]:
    """The longer side of every thing in pixels; small ones as often as large ones."""
    largest = LARGEST[count]
    if count == 1:
        share = rng.uniform(0.25, largest) if rng.random() < 0.8 else rng.uniform(SMALLEST, 0.3)
        return [share * SIDE]
    base = np.exp(rng.uniform(np.log(0.11), np.log(largest)))
    spread = rng.choice((1.0, 1.2, 1.8))
    shares = base * np.exp(rng.uniform(-np.log(spread), np.log(spread), count))
    return (shares.clip(SMALLEST + 0.01, largest) * SIDE).tolist()


def _rendered(rng: np.random.Generator, item: Item, side: float, aspect: float) -> Image.Image:
    """The item so large in pixels, squashed like the picture, and cropped to itself."""
    image = item.image
    if item.mirrors and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(image.width / aspect**0.5, image.height * aspect**0.5)
    if item.turn and rng.random() < 0.35:
        image = _resized(image, scale, scale)
        angle = rng.uniform(-item.turn, item.turn)
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        image = _cropped(image)
        scale = min(1.0, side / max(image.size))
    return _cropped(_resized(image, scale / aspect**0.5, scale * aspect**0.5))


def _resized(image: Image.Image, across: float, down: float) -> Image.Image:
    size = max(4, round(image.width * across)), max(4, round(image.height * down))
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _cropped(image: Image.Image) -> Image.Image:
    solid = image.getchannel("A").point([0] * _ALPHA + [255] * (256 - _ALPHA))
    return image.crop(solid.getbbox() or (0, 0, 1, 1))


def _arranged(
    rng: np.random.Generator, images: list[Image.Image]
) -> tuple[list[Image.Image], list[Place]]:
    """Places that overlap little; where none are found, the things are made smaller."""
    overlap = 0.12 if rng.random() < 0.25 else -0.01
    in_row = len(images) > 1 and rng.random() < 0.2
    while True:
        for _ in range(3):
            places = (_row if in_row else _scattered)(rng, [i.size for i in images], overlap)
            if places is not None:
                return images, places
        images = [_cropped(_resized(image, 0.88, 0.88)) for image in images]


def _scattered(rng: np.random.Generator, sizes: list[Place], overlap: float) -> list[Place] | None:
    """Anywhere, the largest first."""
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1]):
        w, h = sizes[index]
        if max(w, h) > SIDE:  # what was turned and squashed after may be
            return None
        for _ in range(25):
            x, y = int(rng.integers(SIDE - w + 1)), int(rng.integers(SIDE - h + 1))
            box = (x, y, x + w, y + h)
            if all(_covered(box, other) <= overlap for other in boxes.values()):
                boxes[index] = box
                break
        else:
            return None
    return [boxes[index][:2] for index in range(len(sizes))]


def _row(rng: np.random.Generator, sizes: list[Place], overlap: float) -> list[Place] | None:
    """Side by side, or one below the other."""
    axis = 0 if rng.random() < 0.75 else 1
    free = SIDE - sum(size[axis] for size in sizes)
    if free < 6 * len(sizes):
        return None
    gaps = rng.dirichlet(np.full(len(sizes) + 1, 6.0)) * free
    line, jitter = rng.uniform(0.25, 0.75), rng.choice((0.0, 0.04))
    places, at = [], 0.0
    for size, gap in zip(sizes, gaps, strict=False):
        at += gap
        room = SIDE - size[1 - axis]
        aside = int(
            np.clip((line + rng.uniform(-jitter, jitter)) * SIDE - size[1 - axis] / 2, 0, room)
        )
        places.append((int(at), aside) if axis == 0 else (aside, int(at)))
        at += size[axis]
    return places


def _covered(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The share of the smaller box that lies in the other; less than 0 where they are apart."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w < 0 or h < 0:
        return -1.0
    return w * h / min((k[2] - k[0]) * (k[3] - k[1]) for k in (a, b))


def _contrasting(
    images: list[Image.Image], places: list[Place], backdrop: Callable[[], Image.Image]
) -> Image.Image:
    """A backdrop before which all can be seen, or the plain one before which most can."""
    for _ in range(5):
        picture = backdrop()
        if all(_seen(image, picture, place) for image, place in zip(images, places, strict=True)):
            return picture
    plain = [
        Image.new("RGB", (SIDE, SIDE), colour)
        for colour in (
            (255, 255, 255),
            (20, 20, 24),
            (128, 200, 255),
            (250, 225, 120),
            (120, 120, 120),
        )
    ]
    pairs = list(zip(images, places, strict=True))
    return max(plain, key=lambda p: sum(_seen(image, p, place) for image, place in pairs))


def _seen(image: Image.Image, picture: Image.Image, place: Place) -> bool:
    """Whether enough of it has another colour than what is behind, fine grain left aside."""
    x, y = place
    thing = _thumbnail(image)
    behind = _thumbnail(picture.crop((x, y, x + image.width, y + image.height)))
    solid = thing[..., 3] > 100
    apart = np.sqrt(((thing[..., :3] - behind[..., :3])[solid] ** 2).sum(-1))
    return bool(apart.size) and float((apart > _SEEN_BY).mean()) >= _SEEN_SHARE


def _thumbnail(image: Image.Image) -> NDArray[np.float32]:
    small = image.resize((20, 20), Image.Resampling.BOX, reducing_gap=1.0)
    return np.asarray(small, np.float32)
