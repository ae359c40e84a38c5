"""How well the trained vision heads see, by themselves, on pictures held out from all training.

python recipes/tiny/check_views.py --count 400
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Sequence

import numpy as np
import onnxruntime
from calibrate import matches
from captions import load_concepts
from classifier import load_checkpoint
from detector import Floats
from numpy.typing import NDArray
from pictures import load_cutouts
from PIL import Image
from scenes import Scenes
from seen import SORTS, SURFACES, Look
from spatial_projector import softmax
from views import load_views, look, open_views
from weights import CACHE, ENCODER, download

# From this probability on a box counts as a thing.
CERTAIN = 0.5
SIDE = 520
Session = onnxruntime.InferenceSession


def check_scenes(session: Session, count: int) -> None:
    """The detector, counts, names, surfaces and sorts on composed scenes of held-out cutouts."""
    scenes, rng = Scenes(held_out=True), np.random.default_rng(11)
    found = right = there = 0
    counts, names, surfaces, sorts = [], [], [], []
    for _ in range(count):
        sample = scenes.draw(rng)
        seen, things = look(session, sample.pixels), sample.scene.things
        sorts.append((sample.scene.sort, int(seen.sorts.argmax())))
        if sample.scene.sort == SORTS.index("photo"):
            continue
        certain = seen.objectness >= CERTAIN
        matched = matches(seen, sample.scene)
        there, found = there + len(things), found + int(certain.sum())
        right += int((certain & (matched >= 0)).sum())
        if things:
            counts.append(int(certain.sum()) == len(things))
        for i in np.flatnonzero(certain & (matched >= 0)):
            thing = things[matched[i]]
            names.append(_rank(seen.thing_concepts[i], thing.concept))
            said = int(seen.thing_surfaces[i].argmax())
            surfaces.append((thing.surface % (len(SURFACES) + 1), said))
    print(f"scenes: {count}; things found {right / there:.3f}, right {right / max(found, 1):.3f}")
    print(f"counts of one to five right: {np.mean(counts):.3f} of {len(counts)}")
    print(f"names of found things: {_tops(names)}")
    told = [(true, said) for true, said in surfaces if true < len(SURFACES)]
    print(f"surfaces, where there is one: {_agree(told)} of {len(told)}; all: {_agree(surfaces)}")
    by_sort = {SORTS[s]: _agree([p for p in sorts if p[0] == s]) for s in {p[0] for p in sorts}}
    print(f"sorts: {_agree(sorts)}, {by_sort}")


def check_cutouts(session: Session, count: int) -> None:
    """Held-out cutouts, each in the middle of a white picture, by the whole view, the surest
    glimpse, and both."""
    cutouts = [cutout for cutout in load_cutouts() if cutout.held_out]
    rng = np.random.default_rng(12)
    ranks: dict[str, list[int]] = {"whole": [], "glimpse": [], "both": []}
    expected = []
    for index in rng.permutation(len(cutouts))[:count]:
        seen = look(session, _on_white(cutouts[index].rgba))
        whole, glimpse = softmax(seen.concepts), softmax(seen.thing_concepts[0])
        both = whole + seen.objectness[0] * glimpse
        for name, scores in (("whole", whole), ("glimpse", glimpse), ("both", both)):
            ranks[name].append(_rank(scores, cutouts[index].concept))
        expected.append(whole.max())
    for name, values in ranks.items():
        print(f"held-out cutouts on white, {name}: {_tops(values)}")
    print(f"the whole view expects to be right: {np.mean(expected):.3f}")


def check_easy_vqa(session: Session, count: int) -> None:
    """Shape and colour of the one thing in easy-VQA's test pictures, by the surest glimpse."""
    wheel = next(CACHE.glob("easy_vqa-1.0-*.whl"), None) or download("easy-vqa", "1.0", CACHE)
    concepts = [concept.name.split(" ", 1)[-1] for concept in load_concepts()]
    rows = {name: concepts.index(name) for name in ("circle", "rectangle", "triangle")}
    found, shapes, loose, colours = [], [], [], []
    with zipfile.ZipFile(wheel) as archive:
        data = "easy_vqa/data/test/"
        truth: dict[int, dict[str, str]] = {}
        for _, answer, image in json.loads(archive.read(f"{data}questions.json")):
            if answer in rows:
                truth.setdefault(image, {})["shape"] = answer
            elif answer not in ("yes", "no"):
                truth.setdefault(image, {})["colour"] = answer.replace("gray", "grey")
        for image in sorted(truth)[:count]:
            png = Image.open(io.BytesIO(archive.read(f"{data}images/{image}.png")))
            picture = png.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            seen = look(session, np.asarray(picture))
            found.append(seen.objectness[0] >= CERTAIN)
            said = concepts[int(seen.thing_concepts[0].argmax())]
            if shape := truth[image].get("shape"):
                shapes.append(said == shape)
                loose.append(said == shape or (said, shape) == ("square", "rectangle"))
            if colour := truth[image].get("colour"):
                colours.append(_colour(seen) == colour)
    print(
        f"easy-VQA: found {np.mean(found):.3f} of {len(found)}; shape {np.mean(shapes):.3f}, with "
        f"squares as rectangles {np.mean(loose):.3f}; colour {np.mean(colours):.3f}"
    )


def check_speed(threads: int) -> None:
    session = open_views(load_checkpoint(ENCODER.fetch()), load_views(), threads)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        look(session, pixels)
        times.append(time.perf_counter() - began)
    print(
        f"{threads} threads: best {1000 * min(times):.0f} ms, median {1000 * np.median(times):.0f}"
    )


def _colour(seen: Look) -> str:
    return (*SURFACES, "")[int(seen.thing_surfaces[0].argmax())]


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(rgba)
    scale = 0.9 * SIDE / max(image.size)
    image = image.resize(tuple(max(round(s * scale), 1) for s in image.size), 3)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    picture.paste(image, tuple((SIDE - s) // 2 for s in image.size), image)
    return np.asarray(picture)


def _rank(scores: Floats, truth: int) -> int:
    return int((scores > scores[truth]).sum())


def _tops(ranks: Sequence[int]) -> str:
    first, five = (float(np.mean(np.array(ranks) < k)) for k in (1, 5))
    return f"first {first:.3f}, first five {five:.3f} of {len(ranks)}"


def _agree(pairs: Sequence[tuple[int, int]]) -> str:
    return f"{np.mean([a == b for a, b in pairs]):.3f}" if pairs else "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--easy-vqa", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    check_speed(arguments.threads)
    opened = open_views(load_checkpoint(ENCODER.fetch()), load_views(), arguments.threads)
    check_cutouts(opened, arguments.count)
    check_scenes(opened, arguments.count)
    check_easy_vqa(opened, arguments.easy_vqa)
