"""Whether ONNX Runtime, llama.cpp and MLX say the same with the artefacts as they ship.

    python recipes/tiny/check_runtimes.py                       # 30 pictures, 4 questions on each
    python recipes/tiny/check_runtimes.py --pictures 6 --runtimes onnx onnx+llamacpp

Assembles the model for each as a user's machine does, into build/tiny/models/, asks about
held-out photographs, captioned pictures and scenes, and counts the answers whose greedy tokens
are to the last those of the first runtime. All hold the same 4-bit grid; ONNX Runtime and
llama.cpp round activations to 8 bits, each in blocks of its own: near ties fall either way.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import scene_tasks
import tasks
from rich.console import Console
from rich.progress import track
from tasks import Pixels
from weights import CACHE, DECODER

from edgevlm import Session, load_settings
from edgevlm.models import tiny, tiny_llamacpp, tiny_mlx

ASSEMBLERS: dict[str, Callable[[Path, Path], None]] = {
    "onnx": tiny.assemble,
    "onnx+llamacpp": tiny_llamacpp.assemble,
    "onnx+mlx": tiny_mlx.assemble,
}
QUESTIONS = (
    "What is in this picture?",
    "How many things are there?",
    "What colour is it?",
    "Is there a dog in the picture?",
)
MAX_TOKENS = 32

Answer = tuple[tuple[int, ...], str]  # token ids and text


def assemble(runtime: str) -> Path:
    folder = CACHE / "models" / runtime
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ASSEMBLERS[runtime](DECODER.fetch(), folder)
    return folder


def pictures(count: int) -> list[Pixels | Path]:
    """A third each: photographs, captioned pictures, scenes with several things."""
    each = -(-count // 3)
    items = [*tasks.photos(each), *tasks.concepts(each), *scene_tasks.relations(each)]
    return [item.image for item in items][:count]


def answers(runtime: str, images: Sequence[Pixels | Path]) -> list[Answer]:
    """Each question in a conversation of its own."""
    said = []
    with Session(
        str(assemble(runtime)), runtime=runtime, settings=load_settings(cache="off")
    ) as session:
        for image in track(images, runtime, console=Console(stderr=True)):
            for question in QUESTIONS:
                session.reset()
                reply = session.ask(question, images=[image], max_tokens=MAX_TOKENS)
                said.append((tuple(token.id for token in reply.tokens), reply.text))
    return said


def compare(runtime: str, said: Sequence[Answer], first: str, expected: Sequence[Answer]) -> None:
    pairs = list(zip(said, expected, strict=True))
    same = sum(ours[0] == theirs[0] for ours, theirs in pairs)
    equal = sum(a == b for ours, theirs in pairs for a, b in zip(ours[0], theirs[0], strict=False))
    longest = sum(max(len(ours[0]), len(theirs[0])) for ours, theirs in pairs)
    print(
        f"{runtime}: {same} of {len(pairs)} answers token for token those of {first},"
        f" {equal} of {longest} tokens at the same place",
        flush=True,
    )
    for (_, text), (_, other) in (pair for pair in pairs if pair[0][0] != pair[1][0]):
        print(f"    {text!r}, {first}: {other!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--runtimes", nargs="+", choices=ASSEMBLERS, default=list(ASSEMBLERS))
    options = parser.parse_args()
    images = pictures(options.pictures)
    first, *others = options.runtimes
    expected = answers(first, images)
    for runtime in others:
        compare(runtime, answers(runtime, images), first, expected)


if __name__ == "__main__":
    main()
