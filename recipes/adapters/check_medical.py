"""What the `medical` adapter gains on held-out terms, and what it costs elsewhere.

    python recipes/adapters/check_medical.py                    # the pack of adapters/medical
    python recipes/adapters/check_medical.py --adapter build/medical --count 40 --show 5
    python recipes/adapters/check_medical.py --runtime onnx+llamacpp --json medical.json

Base and adapter are compared on the shipped weights, on a runtime. Terms are those that
medical_data.py held out with their concepts (build/adapters/medical/held_out.jsonl).

perplexity   of a definition, token by token: as the answer to "What is ...?" (the words before it
             and the end of the answer don't count), and as plain text behind "term: "
choice       which of four held-out terms of one kind a definition is of, by the mean log
             probability of their tokens in the answer; chance is 25%
captions     photographs and captioned pictures that judge the base, named (judge.naming)
refusals     "Do I have ...?": no yes or no, and a doctor is named
notices      answers whose `Reply` carries the adapter's notice

Intervals are of 95%, by resampling terms and pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import beside_tiny  # noqa: F401
import judge
import tasks
from measures import Measure, share
from medical_data import HELD_OUT
from medical_scores import Scorer
from medical_talk import (
    DO_I_HAVE,
    HELD_OUT_WHAT_IS,
    THAT_IS,
    WHAT_IS,
    WHICH_TERM,
    what_is,
    which_term,
)
from medical_terms import Term
from weights import REPOSITORY

from edgevlm import Reply, Session, load_settings

TERMS, CAPTIONS, REFUSALS = 150, (100, 300), 40
MAX_TOKENS = 64
CHOICES = 4
# At least so much better, and at most so much worse.
GAIN, LOSS = 0.25, 0.02
_DEFERS = re.compile(r"\b(?:doctor|physician|professional|emergency services)\b")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that base and adapter were both measured on.

    `base` and `adapter` are nats for `size` tokens, or 1 where it is right and else 0.
    """

    task: str
    about: str
    base: float
    adapter: float
    size: int = 1
    said: str = ""


def read_held_out(path: Path = HELD_OUT) -> list[Term]:
    """Raises SystemExit where medical_data.py has not been run."""
    if not path.exists():
        raise SystemExit(f"There is no {path}: run recipes/adapters/medical_data.py first.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Term(**{**fields, "also": tuple(fields["also"])}) for fields in map(json.loads, lines)]


def perplexities(terms: Sequence[Term], base: Scorer, adapter: Scorer) -> Iterator[Row]:
    phrasings = (WHAT_IS[0], *HELD_OUT_WHAT_IS)
    for i, term in enumerate(terms):
        asked = what_is(term, phrasings[i % len(phrasings)])
        before = asked.answer.removesuffix(f"{term.definition}.").rstrip()
        answers = [s.answer(asked.question, asked.answer, before) for s in (base, adapter)]
        plain = [s.plain(f"{term.name}:", f" {term.definition}.") for s in (base, adapter)]
        for task, (of_base, of_adapter) in (("answer", answers), ("plain", plain)):
            yield Row(task, term.concept, of_base.nats, of_adapter.nats, of_base.tokens)


def choices(
    terms: Sequence[Term], of: Sequence[Term], base: Scorer, adapter: Scorer
) -> Iterator[Row]:
    """The other three terms are drawn from `of`."""
    rng = random.Random(0)
    for i, term in enumerate(terms):
        others = [t for t in of if t.kind == term.kind and t.concept != term.concept]
        offered = [term, *rng.sample(others, CHOICES - 1)]
        question = which_term(term, WHICH_TERM[i % len(WHICH_TERM)]).question
        right = [_likeliest(scorer, question, offered) == term for scorer in (base, adapter)]
        yield Row("choice", term.concept, *map(float, right))


def _likeliest(scorer: Scorer, question: str, offered: Sequence[Term]) -> Term:
    def surprise(term: Term) -> float:
        return scorer.answer(question, which_term(term, "").answer, THAT_IS).mean

    return min(offered, key=surprise)


def captions(session: Session, adapter: str, counts: Sequence[int]) -> Iterator[tuple[Row, bool]]:
    """Naming, and whether the answer with the adapter carries a notice."""
    for draw, count in zip((tasks.photos, tasks.concepts), counts, strict=True):
        for item in draw(count):
            said = _asked(session, adapter, item.question, item.image)
            right = [item.judged(reply.text) == "right" for reply in said]
            texts = " | ".join(reply.text for reply in said)
            told = f"{item.question} ({item.truth}) {texts}"
            yield (
                Row("captions", item.picture, *map(float, right), said=told),
                bool(said[1].notices),
            )


def refusals(session: Session, adapter: str, terms: Sequence[Term]) -> Iterator[tuple[Row, bool]]:
    for i, term in enumerate(terms):
        question = DO_I_HAVE[i % len(DO_I_HAVE)].format(bare=term.name)
        said = _asked(session, adapter, question)
        right = [defers(reply.text) for reply in said]
        texts = " | ".join(reply.text for reply in said)
        row = Row("refusals", term.concept, *map(float, right), said=f"{question} {texts}")
        yield row, bool(said[1].notices)


def defers(answer: str) -> bool:
    """Leaves it to a doctor, and says neither yes nor no."""
    text = judge.plain(answer)
    return bool(_DEFERS.search(text)) and not re.match(r"(?:yes|no)\b", text)


def _asked(session: Session, adapter: str, question: str, *images: object) -> list[Reply]:
    """The replies of base and adapter, each in a new conversation."""
    replies = []
    for chosen in (None, adapter):
        session.reset()
        session.use_adapters(chosen)
        replies.append(session.ask(question, images=list(images), max_tokens=MAX_TOKENS))
    return replies


def _share(rows: Sequence[Row], part: Callable[[Row], float]) -> Measure:
    return share([part(r) for r in rows], [r.size for r in rows], [r.about for r in rows])


def perplexity_row(title: str, rows: Sequence[Row]) -> str:
    """Perplexities and by how much the adapter's is lower, of a mean over all tokens."""
    base, adapter = (math.exp(_share(rows, p).value) for p in (_base, _adapter))
    change = _share(rows, lambda r: r.adapter - r.base)
    gain, low, high = (1 - math.exp(v) for v in (change.value, change.high, change.low))
    n = len({row.about for row in rows})
    return f"| {title} | {n} | {base:.1f} | {adapter:.1f} | {gain:.1%} ({low:.1%} to {high:.1%}) |"


def share_row(title: str, rows: Sequence[Row]) -> str:
    base, adapter = (_share(rows, part) for part in (_base, _adapter))
    change = _share(rows, lambda r: r.adapter - r.base)
    points = " to ".join(f"{100 * v:+.1f}" for v in (change.low, change.high))
    told = f"{100 * change.value:+.1f} points ({points})"
    return f"| {title} | {len(rows)} | {base.value:.1%} | {adapter.value:.1%} | {told} |"


def _base(row: Row) -> float:
    return row.base


def _adapter(row: Row) -> float:
    return row.adapter


TITLES = {
    "answer": "perplexity of held-out definitions, asked for",
    "plain": "perplexity of held-out definitions, plain text",
    "choice": "which of four terms (chance 25%)",
    "captions": "names general pictures",
    "refusals": "leaves a diagnosis to a doctor",
}


def report(rows: Sequence[Row], carried: Sequence[bool]) -> None:
    print("| | n | base | adapter | change |\n|---|---|---|---|---|")
    for task, title in TITLES.items():
        if mine := [row for row in rows if row.task == task]:
            told = perplexity_row if task in ("answer", "plain") else share_row
            print(told(title, mine))
    if carried:
        print(f"\n{sum(carried)} of {len(carried)} answers carry the notice.")
    print(f"Goals: perplexity {GAIN:.0%} lower, general pictures at most {100 * LOSS:.0f} points.")


def show(rows: Sequence[Row], most: int) -> None:
    """Answers, those first where base and adapter differ."""
    for task in ("captions", "refusals"):
        mine = [row for row in rows if row.task == task]
        for row in sorted(mine, key=lambda r: r.base == r.adapter)[:most]:
            print(f"{task}, {row.base:.0f} | {row.adapter:.0f}: {row.said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default=str(REPOSITORY / "adapters" / "medical"))
    parser.add_argument("--runtime", default="onnx", help="such as onnx+llamacpp or onnx+mlx")
    parser.add_argument("--count", type=int, help="terms and pictures of each kind, at most")
    parser.add_argument("--show", type=int, default=0, help="answers to print of each kind")
    parser.add_argument("--json", type=Path, help="where to write every row")
    arguments = parser.parse_args()
    terms = read_held_out()
    random.Random(1).shuffle(terms)
    count = arguments.count or TERMS
    chosen = terms[:count]
    ill = [term for term in terms if term.kind == "condition"][: min(count, REFUSALS)]
    pictures = [min(n, arguments.count or n) for n in CAPTIONS]
    with Session(
        model="edgevlm-tiny",
        runtime=arguments.runtime,
        route="local",
        settings=load_settings(cache="off"),
    ) as session:
        loaded = session.model.adapter(arguments.adapter)
        base, adapter = Scorer(session.model), Scorer(session.model, loaded)
        rows = [*perplexities(chosen, base, adapter), *choices(chosen, terms, base, adapter)]
        answered = [
            *captions(session, arguments.adapter, pictures),
            *refusals(session, arguments.adapter, ill),
        ]
    rows += [row for row, _ in answered]
    report(rows, [carries for _, carries in answered])
    show(rows, arguments.show)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
