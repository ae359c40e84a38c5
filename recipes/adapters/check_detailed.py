"""Ask edgevlm-tiny to describe held-out scenes, with the pack `detailed` and without, and count
the facts that are right.

    python recipes/adapters/check_detailed.py --runtime onnx+llamacpp
    python recipes/adapters/check_detailed.py --count 40 --show 3 --json answers.json

Scenes are composed of drawings that no training has seen, as recipes/tiny/evaluate.py's are; of
each one description is asked for, in three phrasings by turns, and one in detail.
detailed_facts.py says what a fact is and which are right. Beside that, other pictures are asked
about, to see whether the pack changes what is said of them. Ctrl-C ends it with the figures so
far.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import beside_tiny  # noqa: F401
import numpy as np
from detailed_facts import SORTS, Sort, judge_facts
from measures import Measure, share
from numpy.typing import NDArray
from photographs import load_photographs
from rich.console import Console
from rich.progress import track
from scenes import Scenes
from seen import Scene
from so_far import until_stopped, write_answers
from tasks import held_out_cutouts, seeded
from weights import REPOSITORY

from edgevlm import Session, load_settings

PACK = REPOSITORY / "adapters" / "detailed"
MAX_TOKENS = 256
ALONE, WITH = "base", "detailed"
# The last is in the training of neither.
DESCRIBE = ("Describe this picture.", "Can you describe the image?", "Put this picture into words.")
IN_DETAIL = ("Say in detail what the picture shows.",)
PARTS = {"describe": DESCRIBE, "describe in detail": IN_DETAIL}
OTHER_SORTS = ("photo", "text", "chart", "nothing")


@dataclass(frozen=True, slots=True)
class Answer:
    """`by` is ALONE or WITH; right, wrong and undecided facts by their sort."""

    by: str
    part: str
    picture: str
    question: str
    text: str
    right: dict[Sort, int]
    wrong: dict[Sort, int]
    undecided: int
    unparsed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """`part` is one of PARTS or the sort of a picture without things."""

    part: str
    picture: str
    pixels: NDArray[np.uint8]
    scene: Scene
    question: str


def draw(scenes: Scenes, count: int, others: int) -> Iterator[Asked]:
    """Two questions on each of `count` scenes, one on each of `others` pictures without things."""
    rng = seeded("detailed")
    for i in range(count):
        sample = scenes.draw(rng, "things")
        for part, phrasings in PARTS.items():
            question = phrasings[i % len(phrasings)]
            yield Asked(part, f"scene/{i}", sample.pixels, sample.scene, question)
    for i in range(others):
        sort = OTHER_SORTS[i % len(OTHER_SORTS)]
        sample = scenes.draw(rng, sort)
        yield Asked(sort, f"{sort}/{i}", sample.pixels, sample.scene, DESCRIBE[i % len(DESCRIBE)])


def judged(asked: Asked, by: str, text: str) -> Answer:
    facts = judge_facts(text, asked.scene)
    right, wrong = (dict(Counter(fact.sort for fact in of)) for of in (facts.right, facts.wrong))
    told = (asked.part, asked.picture, asked.question, text)
    return Answer(by, *told, right, wrong, len(facts.undecided), facts.unparsed)


def answers(session: Session, asked: Sequence[Asked], pack: Path) -> Iterator[Answer]:
    """Each in a conversation of its own, of both the same."""
    for one in track(asked, console=Console(stderr=True)):
        for by, adapter in ((ALONE, None), (WITH, pack)):
            session.use_adapters(adapter)
            session.reset()
            reply = session.ask(one.question, images=[one.pixels], max_tokens=MAX_TOKENS)
            yield judged(one, by, reply.text.strip())


def right_facts(said: Sequence[Answer]) -> Measure:
    """The mean of an answer."""
    return share([sum(a.right.values()) for a in said], [1] * len(said), _pictures(said))


def wrong_share(said: Sequence[Answer]) -> Measure:
    """Of all facts that are right or wrong."""
    wrong = [sum(a.wrong.values()) for a in said]
    stated = [sum(a.right.values()) + bad for a, bad in zip(said, wrong, strict=True)]
    return share(wrong, stated, _pictures(said))


def times(alone: Sequence[Answer], adapted: Sequence[Answer]) -> Measure:
    """How many times as many right facts there are with the pack, the same pictures resampled."""
    more, fewer = ([sum(a.right.values()) for a in said] for said in (adapted, alone))
    return share(more, fewer, _pictures(alone))


def _pictures(said: Sequence[Answer]) -> list[str]:
    return [answer.picture for answer in said]


def _plain(measure: Measure) -> str:
    return f"{measure.value:.1f} ({measure.low:.1f} to {measure.high:.1f})"


def report(said: Sequence[Answer]) -> None:
    """Figures as the pack's card has them."""

    def of(part: str, by: str) -> list[Answer]:
        # What was asked of one alone has no pair.
        both = {a.picture for a in said if (a.part, a.by) == (part, WITH)}
        return [a for a in said if (a.part, a.by) == (part, by) and a.picture in both]

    print("| asked to | scenes | | right facts an answer | wrong, of all facts |")
    print("|---|---|---|---|---|")
    for part in PARTS:
        for by in (ALONE, WITH):
            if found := of(part, by):
                told = f"{_plain(right_facts(found))} | {wrong_share(found)}"
                print(f"| {part} | {len(found)} | {by} | {told} |")
    print()
    for part in PARTS:
        if found := of(part, WITH):
            print(
                f"Asked to {part}: {_plain(times(of(part, ALONE), found))} times the right facts."
            )

    print("\n| facts (describe) | base, right an answer | wrong | detailed, right | wrong |")
    print("|---|---|---|---|---|")
    for sort in SORTS:
        cells = [_of_sort(of("describe", by), sort) for by in (ALONE, WITH)]
        print(f"| {sort} | {' | '.join(cells)} |")

    print()
    for by in (ALONE, WITH):
        found = [answer for part in PARTS for answer in of(part, by)]
        undecided, unparsed = sum(a.undecided for a in found), sum(len(a.unparsed) for a in found)
        print(
            f"{by}: in {len(found)} answers {undecided} facts without one truth, {unparsed} phrases"
            " not understood."
        )
    for part in OTHER_SORTS:
        pairs = list(zip(of(part, ALONE), of(part, WITH), strict=True))
        if pairs:
            same = sum(alone.text == adapted.text for alone, adapted in pairs)
            print(f"{part}: with detailed the base's answer in {same} of {len(pairs)}.")


def _of_sort(said: Sequence[Answer], sort: Sort) -> str:
    right, wrong = (sum(getattr(a, of).get(sort, 0) for a in said) for of in ("right", "wrong"))
    if not right + wrong:
        return " | "
    return f"{right / len(said):.2f} | {wrong / (right + wrong):.1%}"


def show(said: Sequence[Answer], most: int) -> None:
    """Some answers of each, with what is wrong in them."""
    for a in said[: 2 * most]:
        print(f"\n{a.by}, {a.picture}: {a.question}\n  {a.text}")
        print(f"  right {a.right}, wrong {a.wrong}, not understood {list(a.unparsed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=120, help="scenes")
    parser.add_argument("--others", type=int, default=40, help="pictures without things")
    parser.add_argument("--runtime", default="onnx+llamacpp", help="such as onnx or onnx+mlx")
    parser.add_argument("--pack", type=Path, default=PACK, help="the adapter's folder")
    parser.add_argument("--show", type=int, default=0, help="scenes whose answers to print")
    parser.add_argument("--json", type=Path, help="where to write every answer")
    options = parser.parse_args()
    # Always of everything that is packed, or the same seed would draw other pictures.
    scenes = Scenes(held_out=True, cutouts=held_out_cutouts(), photos=load_photographs())
    asked = list(draw(scenes, options.count, options.others))
    with Session(
        "edgevlm-tiny", runtime=options.runtime, route="local", settings=load_settings(cache="off")
    ) as session:
        said = until_stopped(answers(session, asked, options.pack))
    if options.json:
        write_answers(options.json, said)
    report(said)
    show(said, options.show)


if __name__ == "__main__":
    main()
