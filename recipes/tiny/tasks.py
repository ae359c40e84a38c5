"""What edgevlm-tiny is asked on held-out pictures, and how each answer is judged.

A task draws its questions from a seed of its own, so that the first n are always the same. This
file has the photographs, the captioned pictures, easy-VQA, honesty and descriptions;
scene_tasks.py has those on composed scenes. The phrasings are a user's, not the training's.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import judge
import numpy as np
from captions import load_concepts
from judge import Lexicon, Verdict
from numpy.typing import NDArray
from packages import checked
from photos import Photo, fetch, load_photos
from pictures import Cutout, load_cutouts
from PIL import Image
from projector import load_vocabulary
from weights import CACHE, download

Pixels = NDArray[np.uint8]  # RGB [h, w, 3]

EASY_VQA = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"

NAMING = (
    "What is in this picture?",
    "What do you see here?",
    "What's this a picture of?",
    "Name the main thing in the photo.",
    "what is this",
)
CONCEPT_NAMING = ("What is this?", "What does the picture show?", "What is in this image?")
PRESENCE = (
    "Is there {a} in the picture?",
    "Can you see {a}?",
    "Does this image show {a}?",
    "Is {a} visible here?",
)
DESCRIBING = ("Describe this picture in one sentence.", "Write one sentence about this image.")
UNKNOWABLE = (
    "Where was this taken?",
    "Who took this picture?",
    "What time is it there?",
    "How much did it cost?",
    "What happened just before?",
    "How old is it?",
    "What does it smell like?",
    "Which city is this?",
)
ABSENT = (
    "What colour is the {thing}?",
    "Where is the {thing}?",
    "Is the {thing} on the left or on the right?",
    "What is the {thing} doing?",
    "How big is the {thing}?",
)
NOTHING_NAMING = (*NAMING[:3], "Describe this image.")
# What any picture may be said to be or have.
GENERAL = (
    "picture", "image", "photo", "photograph", "drawing", "illustration", "thing", "object",
    "background", "text", "word", "letter", "number", "shape", "scene", "view", "sign", "chart",
    "front", "side", "top", "well", "colour", "wood", "metal", "stone",
)  # fmt: skip
# Pictures that concepts are shown on: a half on white.
TINTS = 0.5
FILLED = 0.85


@dataclass(frozen=True, slots=True)
class Item:
    """One question. Those with one `picture` show the same pixels.

    `made_up` counts the things named in an answer, and those of them that aren't there.
    `part` is what is reported apart within a task.
    """

    picture: str
    image: Pixels | Path
    question: str
    truth: str
    judged: Callable[[str], Verdict]
    made_up: Callable[[str], tuple[int, int]] | None = None
    part: str = ""


def seeded(task: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(task.encode()))


def with_article(name: str) -> str:
    """A thing's name as asked for: "a dog", and "trees" or "snow" as they are."""
    plural_or_mass = name.endswith("s") and not name.endswith("ss")
    if name.startswith(("a ", "an ", "the ")) or plural_or_mass or name in _MASS:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


_MASS = frozenset(
    {
        "water", "snow", "grass", "sand", "food", "hair", "text", "fur", "wood", "ice", "fire",
        "smoke", "bread", "furniture", "people",
    }
)  # fmt: skip


@cache
def _classes() -> dict[str, tuple[str, str]]:
    """Kind and broad kind, or "", of the classes of classes.txt."""
    vocabulary = load_vocabulary()
    names = (*vocabulary.names, "")
    rows = zip(names, vocabulary.kind_of, vocabulary.broad_of, strict=False)
    return {_bare(n): (_bare(names[k]), _bare(names[b])) for n, k, b in rows}


@cache
def _kinds() -> dict[str, tuple[str, str]]:
    """The same of classes and concepts."""
    concepts = {_bare(c.name): (_bare(c.kind), _bare(c.broad)) for c in load_concepts()}
    return {**_classes(), **concepts}


def _bare(name: str) -> str:
    return " ".join(judge.bare(name))


@cache
def lexicon() -> Lexicon:
    """Everything that counts as naming a thing."""
    names = {*_kinds(), *(name for pair in _kinds().values() for name in pair if name)}
    names |= {word for concept in load_concepts() for word in concept.synonyms}
    return Lexicon(name for name in names if _bare(name) not in GENERAL)


def members(kinds: Collection[str]) -> set[str]:
    """The classes of these kinds: a beagle is a dog."""
    wanted = judge.same(kinds)
    return {name for name, (kind, _) in _classes().items() if kind in wanted}


def true_names(things: Collection[str]) -> set[str]:
    """Every right name of these: synonyms, kinds and broad kinds as well."""
    names = judge.same(things)
    names |= {other for name in names for other in _synonyms().get(name, ())}
    return names | {kind for name in names for kind in _kinds().get(name, ()) if kind}


@cache
def _synonyms() -> dict[str, set[str]]:
    """Of each concept's name and synonyms: all names of the concepts that have it."""
    known: dict[str, set[str]] = {}
    for concept in load_concepts():
        alike = judge.same((concept.name, *concept.synonyms))
        for name in alike:
            known.setdefault(name, set()).update(alike)
    return known


@cache
def _photos() -> list[tuple[Photo, Path]]:
    """The photographs that this machine can fetch."""
    found = [(photo, fetch(photo)) for photo in load_photos()]
    return [(photo, path) for photo, path in found if path is not None]


def photo_accepts(photo: Photo) -> set[str]:
    return judge.same(photo.accept) | members(photo.accept)


def photos(count: int) -> Iterator[Item]:
    for i, (photo, path) in enumerate(_photos()[:count]):
        judged = partial(judge.naming, accepted=photo_accepts(photo), lexicon=lexicon())
        part = "among ImageNet's classes" if photo.in_classes else "not among them"
        yield Item(photo.name, path, NAMING[i % len(NAMING)], photo.main, judged, part=part)


@cache
def held_out_cutouts() -> list[Cutout]:
    return [cutout for cutout in load_cutouts() if cutout.held_out]


def concepts(count: int) -> Iterator[Item]:
    rng, known = seeded("concepts"), load_concepts()
    cutouts = held_out_cutouts()
    for i, row in enumerate(rng.permutation(len(cutouts))[:count]):
        cutout = cutouts[row]
        concept = known[cutout.concept]
        judged = partial(
            judge.naming,
            accepted=(concept.name, *concept.synonyms),
            lexicon=lexicon(),
            first=True,
        )
        question = CONCEPT_NAMING[i % len(CONCEPT_NAMING)]
        pixels = _on_a_tint(cutout.rgba, rng)
        yield Item(cutout.key, pixels, question, concept.name, judged, part=cutout.source)


def _on_a_tint(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    tint = rng.integers(200, 256, 3) if rng.random() < TINTS else np.full(3, 255)
    side = round(max(rgba.shape[:2]) / FILLED)
    picture = Image.new("RGB", (side, side), tuple(int(level) for level in tint))
    cutout = Image.fromarray(rgba)
    corner = ((side - cutout.width) // 2, (side - cutout.height) // 2)
    picture.paste(cutout, corner, cutout.getchannel("A"))
    return np.asarray(picture)


def photo_presence(count: int) -> Iterator[Item]:
    """As many questions about what is there as about what isn't, two a photograph."""
    rng = seeded("photo presence")
    for i, (photo, path) in enumerate(_photos()[: (count + 1) // 2]):
        for there, names in ((True, photo.accept), (False, photo.absent)):
            name = names[rng.integers(len(names))]
            question = PRESENCE[(i + there) % len(PRESENCE)].format(a=with_article(name))
            judged = partial(judge.yes_no, expected=there)
            truth = "yes" if there else "no"
            yield Item(photo.name, path, question, truth, judged, part="photographs")


def easy_vqa(count: int) -> Iterator[Item]:
    """The test split; MIT. None of its pictures or questions is in training."""
    wheel = next(CACHE.glob("easy_vqa-1.0-*.whl"), None) or download("easy-vqa", "1.0", CACHE)
    with zipfile.ZipFile(checked(wheel, EASY_VQA)) as archive:
        data = "easy_vqa/data/test/"
        questions = json.loads(archive.read(f"{data}questions.json"))
        chosen = seeded("easyvqa").permutation(len(questions))[:count]
        for question, answer, image in sorted((questions[i] for i in chosen), key=lambda q: q[2]):
            png = io.BytesIO(archive.read(f"{data}images/{image}.png"))
            pixels = np.asarray(Image.open(png).convert("RGB"))
            part = "yes or no" if answer in ("yes", "no") else _vqa_part(answer)
            judged = partial(_easy_vqa_verdict, expected=answer)
            asked = question[0].upper() + question[1:]
            yield Item(f"easy-vqa/{image}", pixels, asked, answer, judged, part=part)


def _vqa_part(answer: str) -> str:
    return "shape" if answer in judge.SHAPES else "colour"


def _easy_vqa_verdict(answer: str, expected: str) -> Verdict:
    if expected in ("yes", "no"):
        return judge.yes_no(answer, expected == "yes")
    if expected in judge.SHAPES:
        return judge.shape(answer, expected)
    return judge.colour(answer, expected)


def nothing(count: int) -> Iterator[Item]:
    """Pictures of one colour, of a gradient and of noise."""
    rng = seeded("nothing")
    for i in range(count):
        part = ("blank", "gradient", "noise")[i % 3]
        question = NOTHING_NAMING[i % len(NOTHING_NAMING)]
        judged = partial(judge.honesty, lexicon=lexicon())
        yield Item(f"{part}/{i}", _nothing(part, rng), question, part, judged, part=part)


def _nothing(sort: str, rng: np.random.Generator) -> Pixels:
    side = 320
    ends = rng.integers(0, 256, (2, 3))
    if sort == "blank":
        return np.broadcast_to(ends[0].astype(np.uint8), (side, side, 3)).copy()
    if sort == "gradient":
        ramp = np.linspace(0, 1, side)[:, None, None] * np.ones((1, side, 1))
        ramp = ramp if rng.random() < 0.5 else ramp.transpose(1, 0, 2)
        return (ends[0] + ramp * (ends[1] - ends[0])).astype(np.uint8)
    cells = side // int(rng.choice([1, 2, 4, 8]))
    channels = 3 if rng.random() < 0.5 else 1
    grains = rng.integers(0, 256, (cells, cells, channels), np.uint8).repeat(3 // channels, axis=2)
    return np.asarray(Image.fromarray(grains).resize((side, side), Image.Resampling.NEAREST))


def unknowable(count: int) -> Iterator[Item]:
    """What no photograph says, one or two questions each."""
    shown = _photos()
    for i in range(min(count, 2 * len(shown))):
        photo, path = shown[i // 2]
        question = UNKNOWABLE[(i + i // 2) % len(UNKNOWABLE)]
        yield Item(photo.name, path, question, "can't tell", judge.honesty, part="unknowable")


def photo_absence(count: int) -> Iterator[Item]:
    """Questions that take for granted what isn't in the photograph."""
    rng = seeded("photo absence")
    for i, (photo, path) in enumerate(_photos()[:count]):
        thing = _bare(photo.absent[rng.integers(len(photo.absent))])
        yield about_absent(photo.name, path, thing, ABSENT[i % len(ABSENT)])


def about_absent(picture: str, image: Pixels | Path, thing: str, question: str) -> Item:
    judged = partial(judge.honesty, absent=(thing,))
    asked = question.format(thing=thing)
    return Item(picture, image, asked, f"no {thing}", judged, part="not there")


def photo_descriptions(count: int) -> Iterator[Item]:
    for i, (photo, path) in enumerate(_photos()[:count]):
        there = true_names((*photo.present, *photo.accept))
        there |= members((*photo.present, *photo.accept))
        yield description(photo.name, path, there, i, part="photographs")


def description(
    picture: str, image: Pixels | Path, there: Collection[str], i: int, *, part: str
) -> Item:
    made_up = partial(_made_up, there=frozenset(there))
    question = DESCRIBING[i % len(DESCRIBING)]
    truth = ", ".join(sorted(there)[:4])
    return Item(picture, image, question, truth, partial(_true, made_up), made_up, part)


def _made_up(answer: str, there: frozenset[str]) -> tuple[int, int]:
    """How many things are named, and how many of them aren't there."""
    named = {name for name, _ in lexicon().including(there).mentions(answer)}
    return len(named), len(named - there)


def _true(made_up: Callable[[str], tuple[int, int]], answer: str) -> Verdict:
    named, false = made_up(answer)
    if named:
        return "wrong" if false else "right"
    return "refused" if judge.refuses(answer) else "wrong"


def together(*parts: Callable[[int], Iterator[Item]]) -> Callable[[int], Iterator[Item]]:
    """Each part's even share of the count."""

    def draw(count: int) -> Iterator[Item]:
        for i, part in enumerate(parts):
            yield from part((count + i) // len(parts))

    return draw
