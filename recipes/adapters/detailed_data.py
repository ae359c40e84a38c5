"""Write what the pack `detailed` learns from: composed scenes, described at length.

    python recipes/adapters/detailed_data.py    # build/adapters/detailed/: pictures, talks.jsonl

Scenes are those of recipes/tiny, of its training cutouts alone. Each is shown to edgevlm-tiny's
vision encoder as it ships, and the description is of what the encoder tells of it, if all of that
is true of the scene; else the scene is left out. Of pictures without things (photographs, text,
charts, empty ones), and where something short is asked, the answer to learn is edgevlm-tiny's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import beside_tiny  # noqa: F401
import numpy as np
import photographs
from detailed_answers import Describer
from detailed_facts import judge_facts
from detailed_slots import SlotReader
from PIL import Image
from projector import load_vocabulary
from scenes import Scenes
from seen import SORTS, Spatial
from weights import REPOSITORY, token_embeddings

from edgevlm import Session
from edgevlm.adapters.training.pictures import Pictures, files_key
from edgevlm.media import MediaLimits
from edgevlm.model import load_model
from edgevlm.models.gguf import GgufFile
from edgevlm.settings import load_settings

FOLDER = REPOSITORY / "build" / "adapters" / "detailed"
COUNT, SEED = 1000, 50
# Of pictures without things, and of short questions about those with things.
OTHERS, SHORT = 0.16, 0.10
THINGS = SORTS.index("things")
QUALITY = 92  # of the JPEGs
AT_LENGTH = (
    "Describe this picture.",
    "Describe this picture.",
    "Describe this image.",
    "Describe the picture.",
    "Describe the image.",
    "Describe this photo.",
    "Can you describe this picture?",
    "Describe this image in detail.",
    "Describe the picture in detail.",
    "Give a detailed description of the image.",
    "Describe everything you see.",
    "Describe what you see in this picture.",
    "Tell me about this image.",
    "Say what this picture shows.",
    "What does this picture look like?",
    "Walk me through the picture.",
    "Tell me everything about this picture.",
)
BRIEFLY = (
    "Describe this picture in one sentence.",
    "What is in this picture?",
    "How many things are there?",
    "What is this?",
    "Is there a dog in the picture?",
    "Where was this taken?",
    "What does it say?",
    "Is there a circle in the picture?",
)
MAX_TOKENS = 64


class Model(Protocol):
    """edgevlm-tiny, as far as it is needed here."""

    def see(self, picture: Path) -> Spatial: ...

    def answer(self, picture: Path, question: str) -> str: ...


class Shipped:
    """edgevlm-tiny as it is installed. What it sees is kept where `edgevlm adapter train` looks
    for it, so that no picture is encoded twice."""

    def __init__(self) -> None:
        settings = load_settings()
        self._model = load_model("edgevlm-tiny", runtime="onnx+llamacpp", settings=settings)
        files = self._model.files
        folder = settings.home / "training" / "pictures" / files_key(files)
        limits = MediaLimits(max_pixels=settings.max_pixels, allow_network=False)
        self._pictures = Pictures(folder, self._model.family, self._model.vision, limits, _note)
        embeddings = token_embeddings(GgufFile(files.roles["decoder"]))
        self._slots = SlotReader(load_vocabulary(), self._model.family.tokenizer, embeddings)
        self._session = Session(self._model, route="local", settings=settings)

    def see(self, picture: Path) -> Spatial:
        image = self._pictures.prepare(picture, str(picture))
        return self._slots.read(self._pictures.rows(image.key, 0, image.n_tokens))

    def answer(self, picture: Path, question: str) -> str:
        self._session.reset()
        reply = self._session.ask(question, images=[picture], max_tokens=MAX_TOKENS)
        return reply.text.strip()

    def close(self) -> None:
        self._session.close()
        self._model.close()


def write(
    scenes: Scenes, model: Model, folder: Path, *, count: int = COUNT, seed: int = SEED
) -> int:
    """Write `count` conversations and the pictures that they are about. Returns how many scenes
    were left out, as something was not seen rightly."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    left_out = 0
    for number in itertools.count():
        if len(lines) >= count:
            break
        name = f"pictures/{number:05}.jpg"
        talks = list(_conversations(scenes, model, rng, folder / name))
        left_out += not talks
        lines += [_line(name, question, answer) for question, answer in talks]
        if number % 100 == 99:
            _note(f"{len(lines)} of {count} conversations")
    (folder / "talks.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return left_out


def _conversations(
    scenes: Scenes, model: Model, rng: np.random.Generator, path: Path
) -> Iterator[tuple[str, str]]:
    """Questions about a new picture and their answers; none where it isn't seen rightly."""
    of_things = rng.random() >= OTHERS
    sample = scenes.draw(rng, "things" if of_things else _other(rng))
    Image.fromarray(sample.pixels).save(path, quality=QUALITY)
    at_length = AT_LENGTH[rng.integers(len(AT_LENGTH))]
    if not of_things:
        yield at_length, model.answer(path, at_length)
        return
    seen = model.see(path)
    if seen.sort != THINGS or not seen.slots:
        path.unlink()
        return
    answer = Describer(load_vocabulary()).describe(seen)
    facts = judge_facts(answer, sample.scene)
    if facts.wrong or facts.unparsed:
        path.unlink()
        return
    yield at_length, answer
    if rng.random() < SHORT:
        briefly = BRIEFLY[rng.integers(len(BRIEFLY))]
        yield briefly, model.answer(path, briefly)


def _other(rng: np.random.Generator) -> str:
    sorts = [sort for sort in SORTS if sort != "things"]
    if not photographs.PACK.exists():
        sorts.remove("photo")
    return sorts[rng.integers(len(sorts))]


def _line(picture: str, question: str, answer: str) -> str:
    return json.dumps({"image": picture, "question": question, "answer": answer}) + "\n"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT, help="conversations to write")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    with closing(Shipped()) as model:
        left_out = write(Scenes(held_out=False), model, options.out, count=options.count)
    print(f"{options.count} conversations, {left_out} scenes left out: {options.out}/talks.jsonl")


if __name__ == "__main__":
    main()
