"""Ask edgevlm-tiny about held-out pictures, judge what it says, and print the figures.

    python recipes/tiny/evaluate.py                               # about 2,600 questions
    python recipes/tiny/evaluate.py --task colour count --show 5
    python recipes/tiny/evaluate.py --task photos --table         # every photograph's answer
    python recipes/tiny/evaluate.py --task easyvqa --count 9673   # the whole test split
    python recipes/tiny/evaluate.py --runtime onnx+llamacpp --json answers.json

Everything goes through `edgevlm.Session` and the model as it ships. Pictures come from packages
that are fetched into build/tiny/ and from the recipe's own generators, with their held-out parts
(tasks.py, scene_tasks.py); answers are judged by fixed rules (judge.py). Where there is no
apt-get, photographs of Debian packages are left out. Ctrl-C ends it with the figures so far.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import scene_tasks
import tasks
from judge import Verdict
from measures import Measure, auroc, share
from photos import load_photos
from rich.console import Console
from rich.progress import Progress
from tasks import Item, together
from weights import REPOSITORY

from edgevlm import Session, load_settings

MAX_TOKENS = 48
# Asked about by a process of its own, for its memory.
EXAMPLE = REPOSITORY / "examples" / "photo.jpg"
ALONE = """
import sys
from edgevlm import Session, load_settings
model, runtime, picture = sys.argv[1:]
with Session(model=model, runtime=runtime or None) as session:
    print(session.ask("Describe this image.", images=[picture]).peak_rss_bytes)
"""


@dataclass(frozen=True, slots=True)
class Task:
    """`count` questions at most by default; `goal` is the least share of right answers.
    Only where it is not `answerable` an answer is to be refused."""

    name: str
    title: str
    draw: Callable[[int], Iterator[Item]]
    count: int
    goal: float | None = None
    answerable: bool = True


TASKS = (
    Task("photos", "names the main thing of photographs", tasks.photos, 100, 0.60),
    Task("concepts", "names captioned pictures", tasks.concepts, 600, 0.50),
    Task(
        "presence",
        "yes or no about presence",
        together(tasks.photo_presence, scene_tasks.presence),
        200,
        0.80,
    ),
    Task("colour", "colour of a named thing", scene_tasks.colour, 200, 0.75),
    Task("count", "count, 1 to 5", scene_tasks.counting, 200, 0.65),
    Task("relations", "left, right, above, below (chance 50%)", scene_tasks.relations, 200, 0.70),
    Task("easyvqa", "easy-VQA, test split", tasks.easy_vqa, 600, 0.75),
    Task("words", "reads a printed word", scene_tasks.words, 200, 0.50),
    Task("charts", "highest value of a chart", scene_tasks.charts, 60),
    Task(
        "honesty",
        "isn't there, or can't be told",
        together(tasks.nothing, tasks.unknowable, tasks.photo_absence, scene_tasks.absence),
        200,
        0.70,
        answerable=False,
    ),
    Task(
        "descriptions",
        "nothing made up in one sentence",
        together(tasks.photo_descriptions, scene_tasks.descriptions),
        120,
    ),
)
BY_NAME = {task.name: task for task in TASKS}


@dataclass(frozen=True, slots=True)
class Answer:
    """`confidence` is the mean logprob of the answer's tokens. `named` things are in it, `made_up`
    of them not in the picture. `new` says that the picture was not the last one's."""

    task: str
    part: str
    picture: str
    question: str
    truth: str
    text: str
    verdict: Verdict
    confidence: float
    named: int
    made_up: int
    new: bool
    ttft_ms: float
    decode_tps: float


class Evaluation:
    """The answers of one session, as far as they have come."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.answers: list[Answer] = []

    def run(self, chosen: Sequence[Task], count: int | None) -> None:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            for task in chosen:
                started, wanted = time.monotonic(), count or task.count
                row = bar.add_task(task.name, total=wanted)
                for done, item in enumerate(task.draw(wanted), 1):
                    self.answers.append(self._asked(task, item))
                    bar.update(row, completed=done)
                seconds = time.monotonic() - started
                answered = sum(answer.task == task.name for answer in self.answers)
                console.print(f"{task.name}: {answered} answers in {seconds:.0f} s")

    def _asked(self, task: Task, item: Item) -> Answer:
        self._session.reset()
        reply = self._session.ask(item.question, images=[item.image], max_tokens=MAX_TOKENS)
        named, made_up = item.made_up(reply.text) if item.made_up else (0, 0)
        return Answer(
            task=task.name,
            part=item.part,
            picture=item.picture,
            question=item.question,
            truth=item.truth,
            text=reply.text,
            verdict=item.judged(reply.text),
            confidence=sum(token.logprob for token in reply.tokens) / max(len(reply.tokens), 1),
            named=named,
            made_up=made_up,
            new=not self.answers or self.answers[-1].picture != item.picture,
            ttft_ms=reply.timings.ttft_ms,
            decode_tps=reply.timings.decode_tps,
        )


def said(answers: Sequence[Answer], *verdicts: Verdict) -> Measure:
    """The share of answers with these verdicts."""
    hits = [answer.verdict in verdicts for answer in answers]
    return share(hits, [1] * len(answers), [answer.picture for answer in answers])


def report(answers: Sequence[Answer]) -> None:
    print("| task | answers | right | goal | wrong | refused |\n|---|---|---|---|---|---|")
    of = {name: [a for a in answers if a.task == name] for name in BY_NAME}
    for task in TASKS:
        if of[task.name]:
            right, wrong, refused = (said(of[task.name], v) for v in ("right", "wrong", "refused"))
            goal = f"{task.goal:.0%}" if task.goal else ""
            rest = f"{goal} | {wrong.value:.1%} | {refused.value:.1%}"
            print(f"| {task.title} | {right.n} | {right} | {rest} |")
    print()
    if described := of["descriptions"]:
        columns = zip(*((a.made_up, a.named, a.picture) for a in described), strict=True)
        made_up = share(*columns)
        print(f"Named in descriptions but not there (goal: at most 20%): {made_up} of {made_up.n}.")
    if answerable := [a for a in answers if BY_NAME[a.task].answerable]:
        print(f"Answerable but refused (goal: at most 10%): {said(answerable, 'refused')}.")
    rights = [a.verdict == "right" for a in answers]
    sure = auroc([a.confidence for a in answers], rights, [a.picture for a in answers])
    print(
        "AUROC of the mean logprob for being right (goal: 0.75): "
        f"{sure.value:.3f} ({sure.low:.3f} to {sure.high:.3f})."
    )
    first = median(a.ttft_ms for a in answers if a.new)
    speed = median(a.decode_tps for a in answers)
    print(f"Median first token of a new picture {first:.0f} ms, decoding {speed:.0f} tokens/s.")


def report_parts(answers: Sequence[Answer]) -> None:
    print("\n| task | part | answers | right |\n|---|---|---|---|")
    for task, part in dict.fromkeys((a.task, a.part) for a in answers if a.part):
        right = said([a for a in answers if (a.task, a.part) == (task, part)], "right")
        print(f"| {task} | {part} | {right.n} | {right} |")


def show(answers: Sequence[Answer], most: int) -> None:
    """Some answers of every task that are not right."""
    for task in TASKS:
        missed = [a for a in answers if a.task == task.name and a.verdict != "right"]
        for a in missed[:most]:
            print(f"\n{task.name}, {a.verdict}: {a.picture} ({a.truth})")
            print(f"  {a.question}\n  {a.text} ({a.confidence:.2f})")


def table(answers: Sequence[Answer]) -> None:
    """Every photograph's answer, as the model card has them."""
    words = {"right": "named", "refused": "declined", "wrong": "wrong"}
    main = {photo.name: photo.main for photo in load_photos()}
    print("\n| picture | main thing | question | answer | verdict |\n|---|---|---|---|---|")
    for a in answers:
        if a.task == "photos":
            row = (a.picture, main[a.picture], a.question, a.text, words[a.verdict])
            print(f"| {' | '.join(row)} |")


def memory(model: str, runtime: str) -> float:
    """Most resident memory in MiB of a process that does nothing but answer one question.

    Linux lets a process inherit the figure of the one that starts it, so it is started first.
    """
    command = [sys.executable, "-c", ALONE, model, runtime, str(EXAMPLE)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(run.stdout) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", nargs="+", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument("--count", type=int, help="questions a task, at most")
    parser.add_argument("--model", default="edgevlm-tiny", help="a model name or folder")
    parser.add_argument("--runtime", default="onnx", help="such as onnx+llamacpp or onnx+mlx")
    parser.add_argument("--show", type=int, default=0, help="missed answers to print a task")
    parser.add_argument("--table", action="store_true", help="print the photographs' answers")
    parser.add_argument("--json", type=Path, help="where to write every answer")
    arguments = parser.parse_args()
    resident = memory(arguments.model, arguments.runtime)
    with Session(
        model=arguments.model, runtime=arguments.runtime, settings=load_settings(cache="off")
    ) as session:
        evaluation = Evaluation(session)
        try:
            evaluation.run([BY_NAME[name] for name in arguments.task], arguments.count)
        except KeyboardInterrupt:
            print("Stopped; these are the figures so far.\n", file=sys.stderr)
    answers = evaluation.answers
    if not answers:
        return
    report(answers)
    print(f"Most memory of a session that answers one question: {resident:.0f} MiB.")
    report_parts(answers)
    show(answers, arguments.show)
    if arguments.table:
        table(answers)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(a) for a in answers], indent=1))


if __name__ == "__main__":
    main()
