"""Ask easy-VQA's test split of edgevlm-tiny, with the pack `shapes` and without, on each runtime.

    python recipes/adapters/check_shapes.py --count 500                   # all three runtimes
    python recipes/adapters/check_shapes.py --runtimes onnx --show 10
    python recipes/adapters/check_shapes.py --runtimes onnx+mlx --pack-only   # a slow runtime
    python recipes/adapters/check_shapes.py --count 9673 --json answers.json

Pictures are drawn from the whole split by a seed, and of each all questions are asked, every one
in a conversation of its own; recipes/tiny/judge.py says what is right. Ctrl-C ends it with the
figures so far.
"""

from __future__ import annotations

import argparse
import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import beside_tiny  # noqa: F401
import judge
from judge import Verdict
from measures import Measure, share
from rich.console import Console
from rich.progress import track
from shapes_data import SHAPES, Asked, Kind, fetch, read_picture, read_questions
from so_far import until_stopped, write_answers
from weights import REPOSITORY

from edgevlm import Session, load_settings

RUNTIMES = ("onnx", "onnx+llamacpp", "onnx+mlx")
PACK = REPOSITORY / "adapters" / "shapes"
MAX_TOKENS = 32
SEED = 0
# The adapter of each that is asked: a pack's folder, or none.
Asking: TypeAlias = Mapping[str, Path | None]
ALONE, WITH = "base", "shapes"
KINDS: dict[Kind, str] = {
    "shape": "which shape",
    "colour": "which colour",
    "there": "is it there? It is",
    "not there": "is it there? It isn't",
    "no such, and there": "is it not there? It is",
    "no such": "is it not there? It isn't",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """`by` is ALONE or WITH."""

    runtime: str
    by: str
    picture: int
    question: str
    truth: str
    kind: Kind
    text: str
    verdict: Verdict


def verdict(asked: Asked, text: str) -> Verdict:
    if asked.answer in ("yes", "no"):
        return judge.yes_no(text, asked.answer == "yes")
    if asked.answer in SHAPES:
        return judge.shape(text, asked.answer)
    return judge.colour(text, asked.answer)


def draw(archive: zipfile.ZipFile, count: int) -> dict[int, list[Asked]]:
    """Pictures of the test split with all their questions, `count` of these or a few more."""
    questions = read_questions(archive, "test")
    drawn: dict[int, list[Asked]] = {}
    for picture in random.Random(SEED).sample(sorted(questions), len(questions)):
        if sum(map(len, drawn.values())) >= count:
            break
        drawn[picture] = questions[picture]
    return drawn


def answers(
    runtime: str, archive: zipfile.ZipFile, drawn: dict[int, list[Asked]], whom: Asking
) -> Iterator[Answer]:
    """A picture is encoded once, for its questions to all of `whom`."""
    with Session("edgevlm-tiny", runtime=runtime, settings=load_settings(cache="off")) as session:
        for picture in track(drawn, runtime, console=Console(stderr=True)):
            png = read_picture(archive, "test", picture)
            for by, adapter in whom.items():
                session.use_adapters(adapter)
                for asked in drawn[picture]:
                    session.reset()
                    text = session.ask(asked.said, images=[png], max_tokens=MAX_TOKENS).text
                    told = (asked.question, asked.answer, asked.kind, text, verdict(asked, text))
                    yield Answer(runtime, by, picture, *told)


def right(said: Sequence[Answer]) -> Measure | str:
    """The share of right answers; pictures are resampled, as one's questions share its luck.
    Nothing where nothing was asked."""
    if not said:
        return ""
    hits = [answer.verdict == "right" for answer in said]
    return share(hits, [1] * len(said), [str(answer.picture) for answer in said])


def report(said: Sequence[Answer]) -> None:
    """Figures as the pack's card has them, of the runtimes that came to an answer with it."""
    runtimes = list(dict.fromkeys(answer.runtime for answer in said if answer.by == WITH))
    if not runtimes:
        return

    def of(runtime: str, by: str) -> list[Answer]:
        return [answer for answer in said if (answer.runtime, answer.by) == (runtime, by)]

    print("| runtime | questions | base | with shapes |\n|---|---|---|---|")
    for runtime in runtimes:
        alone, adapted = of(runtime, ALONE), of(runtime, WITH)
        print(f"| {runtime} | {len(adapted)} | {right(alone)} | {right(adapted)} |")

    first = runtimes[0]
    print(f"\n| asked ({first}) | questions | base | with shapes |\n|---|---|---|---|")
    for kind, title in KINDS.items():
        before, after = (
            [answer for answer in of(first, by) if answer.kind == kind] for by in (ALONE, WITH)
        )
        if after:
            print(f"| {title} | {len(after)} | {right(before)} | {right(after)} |")

    print()
    expected = {(a.picture, a.question): a for a in of(first, WITH)}
    for runtime in runtimes[1:]:
        pairs = [(a, expected[a.picture, a.question]) for a in of(runtime, WITH)]
        words = sum(a.text == b.text for a, b in pairs) / len(pairs)
        verdicts = sum(a.verdict == b.verdict for a, b in pairs) / len(pairs)
        print(
            f"With shapes {runtime} answers as {first} does word for word in {words:.1%} of"
            f" {len(pairs)} questions, and is as right in {verdicts:.1%}."
        )


def show(said: Sequence[Answer], most: int) -> None:
    """Some answers with the pack that are not right."""
    missed = [answer for answer in said if answer.by == WITH and answer.verdict != "right"]
    for a in missed[:most]:
        print(f"\n{a.runtime}, test/{a.picture}: {a.question} ({a.truth})\n  {a.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="questions, of 9,673")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--pack", type=Path, default=PACK, help="the adapter's folder")
    parser.add_argument("--pack-only", action="store_true", help="don't ask the base")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print")
    parser.add_argument("--json", type=Path, help="where to write every answer")
    options = parser.parse_args()
    whom: Asking = {WITH: options.pack}
    if not options.pack_only:
        whom = {ALONE: None, **whom}
    with zipfile.ZipFile(fetch()) as archive:
        drawn = draw(archive, options.count)
        asked = (answers(runtime, archive, drawn, whom) for runtime in options.runtimes)
        said = until_stopped(chain.from_iterable(asked))
    if options.json:
        write_answers(options.json, said)
    report(said)
    show(said, options.show)


if __name__ == "__main__":
    main()
