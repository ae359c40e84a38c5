"""Groups of near-duplicates, so that a drawing and its copies fall on one side of the split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID = 16
# Bits of 256 that may differ, chosen by looking at pairs. Nearer than _SAME is one drawing; nearer
# than _ALIKE is one where the outlines overlap this much too, or a little less with these colours.
_SAME, _ALIKE = 14, 44
_OUTLINE, _SAME_OUTLINE, _COLOURS = 0.92, 0.955, 0.80


class _Picture(Protocol):
    @property
    def rgba(self) -> NDArray[np.uint8]: ...
    @property
    def concept(self) -> int: ...
    @property
    def held_out(self) -> bool: ...


def group(
    pictures: Sequence[NDArray[np.uint8]], concepts: Sequence[int], labels: Sequence[str]
) -> NDArray[np.int64]:
    """A group's number for each picture [n]: the lowest index in its group.

    Pictures that share a label are one group whatever they look like.
    """
    parents = list(range(len(pictures)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[str, int] = {}
    pairs = [(first.setdefault(label, i), i) for i, label in enumerate(labels)]
    pairs += _near_pairs(pictures, np.array(concepts))
    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parents[high] = low
    return np.array([root(i) for i in range(len(pictures))])


def leaks(cutouts: Sequence[_Picture]) -> int:
    """How many held-out pictures have a near-duplicate that is trained on."""
    concepts = np.array([c.concept for c in cutouts])
    crossing = set()
    for a, b in _near_pairs([c.rgba for c in cutouts], concepts):
        if cutouts[a].held_out != cutouts[b].held_out:
            crossing.add(a if cutouts[a].held_out else b)
    return len(crossing)


def _near_pairs(
    pictures: Sequence[NDArray[np.uint8]], concepts: NDArray[np.int64]
) -> list[tuple[int, int]]:
    prints = [_prints(picture) for picture in pictures]
    bits, mirrored, outlines, colours = (np.stack(column) for column in zip(*prints, strict=True))
    pairs = []
    for start in range(0, len(bits), 1024):
        rows = slice(start, start + 1024)
        # Bits are +1 and -1, so a dot product counts agreements less disagreements.
        agreement = np.maximum(bits[rows] @ bits.T, mirrored[rows] @ bits.T)
        different = (256 - agreement) / 2
        same_thing = concepts[rows, None] == concepts
        for i, j in np.argwhere((different < _ALIKE) | same_thing):
            a, b = int(i) + start, int(j)
            if a >= b:
                continue
            outline = max(
                _overlap(outlines[a], outlines[b]), _overlap(outlines[a][:, ::-1], outlines[b])
            )
            if same_thing[i, j]:
                # A recoloured copy keeps its outline and little else.
                limit = _OUTLINE if different[i, j] < _ALIKE else _SAME_OUTLINE
                near = outline > limit or (different[i, j] < _SAME and outline > 0.8)
            else:
                same_colours = float(np.minimum(colours[a], colours[b]).sum()) > _COLOURS
                near = different[i, j] < _SAME and outline > 0.8
                near |= same_colours and outline > 0.9
            if near:
                pairs.append((a, b))
    return pairs


def _prints(rgba: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    """Gradient bits [256] and mirrored ones as +-1, the outline [32, 32], colours [64]."""
    image = Image.fromarray(rgba)
    side = max(image.size)
    paper = Image.new("RGBA", (side, side), "white")
    at = ((side - image.width) // 2, (side - image.height) // 2)
    paper.alpha_composite(image, at)
    grey = np.array(paper.convert("L").resize((GRID + 1, GRID), Image.Resampling.BOX), np.int16)
    alpha = Image.new("L", (side, side))
    alpha.paste(image.getchannel("A"), at)
    outline = np.array(alpha.resize((32, 32), Image.Resampling.BOX), np.float32) / 255
    quarters = rgba[rgba[..., 3] > 128][:, :3] // 64
    counts = np.bincount(quarters @ np.array([16, 4, 1]), minlength=64).astype(np.float32)
    colours = counts / max(counts.sum(), 1)

    def bits(values: NDArray[np.int16]) -> NDArray[np.float32]:
        return np.where(np.diff(values, axis=1) > 2, 1, -1).ravel().astype(np.float32)

    return bits(grey), bits(grey[:, ::-1]), outline, colours


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Intersection over union of two soft outlines [32, 32]."""
    return float(np.minimum(a, b).sum() / max(float(np.maximum(a, b).sum()), 1e-6))
