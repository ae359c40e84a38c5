"""Ask edgevlm-tiny the questions of the test bed, and keep all that confidence is made of.

    python recipes/routing/collect.py                             # build/routing/onnx/
    python recipes/routing/collect.py --runtime onnx+llamacpp --count 1500
    python recipes/routing/collect.py --adapter shapes --task easyvqa

`answers.jsonl` has a line an answer: question, verdict, and each token with the five likeliest.
Beside it lie, in the order of its lines, the grey copies of the pictures (`grey.u8`) and, for
every token, some logits of the step that it was chosen in (`logits.f16`, see
edgevlm/routing/probe.py), so that features can change without asking again. Stopped, it goes
on where it was; the pictures are drawn anew, which is quick.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import beside_tiny  # noqa: F401
import numpy as np
from bed import TASKS, Task, questions
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from tasks import Item
from weights import REPOSITORY

from edgevlm import Session, load_model
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Context, LanguageModel, Logits, Part
from edgevlm.media import load_image
from edgevlm.routing.picture import grey_copy
from edgevlm.routing.probe import PROBED, probed_ids

FOLDER = REPOSITORY / "build" / "routing"
MAX_TOKENS = 48
TOP = 5


class Watched:
    """A context that keeps some logits of every step, on their way to the decode loop."""

    def __init__(self, context: Context, ids: NDArray[np.int64], seen: list[Logits]) -> None:
        self._context, self._ids, self._seen = context, ids, seen

    def extend(self, parts: Sequence[Part], cancel: Cancel) -> Logits:
        logits = self._context.extend(parts, cancel)
        self._seen.append(logits[self._ids])
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class WatchedModel:
    """A language model whose contexts are `Watched`."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        self.ids = probed_ids(language.n_vocab)
        self.seen: list[Logits] = []

    def new_context(self) -> Watched:
        return Watched(self._language.new_context(), self.ids, self.seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._language, name)


class Record:
    """The three files of a collection, as far as they have come."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = (folder / "answers.jsonl").open("a+", encoding="utf-8")
        self._rows.seek(0)
        rows = [json.loads(line) for line in self._rows]
        self.done = {row["key"] for row in rows}
        self._logits = _open_at(
            folder / "logits.f16", sum(len(row["tokens"]) for row in rows) * PROBED * 2
        )
        self._grey = _open_at(
            folder / "grey.u8", sum(row["grey"][0] * row["grey"][1] for row in rows)
        )

    def add(self, row: dict[str, Any], logits: NDArray[Any], grey: NDArray[np.uint8]) -> None:
        """The line comes last: what lies beside it without one is written over."""
        for file, array in ((self._logits, logits.astype(np.float16)), (self._grey, grey)):
            file.write(array.tobytes())
            file.flush()
        self._rows.write(json.dumps(row, separators=(",", ":")) + "\n")
        self._rows.flush()

    def close(self) -> None:
        for file in (self._rows, self._logits, self._grey):
            file.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_at(path: Path, size: int) -> Any:
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(size)
    return file


def collect(
    record: Record, chosen: Sequence[Task], count: int, runtime: str, adapter: str | None
) -> None:
    model = load_model("edgevlm-tiny", runtime=runtime)
    model.language = watched = WatchedModel(model.language)
    total = min(count, sum(task.count * (6 if task.name == "scenes" else 1) for task in chosen))
    pack = None if adapter is None else REPOSITORY / "adapters" / adapter
    with model, Session(model, adapter=pack) as session:
        drawn = zip(range(total), questions(chosen), strict=False)
        for _, (key, task, item) in track(
            drawn, runtime, total=total, console=Console(stderr=True)
        ):
            if key not in record.done:
                watched.seen.clear()
                ask(session, watched, record, key, task, item)


def ask(
    session: Session, watched: WatchedModel, record: Record, key: str, task: Task, item: Item
) -> None:
    pixels = load_image(item.image)
    session.reset()
    reply = session.ask(item.question, images=[pixels], max_tokens=MAX_TOKENS, top_logprobs=TOP)
    grey = grey_copy(pixels)
    row = {
        "key": key,
        "task": task.name,
        "part": item.part,
        "picture": item.picture,
        "size": [pixels.shape[1], pixels.shape[0]],
        "grey": grey.shape,
        "question": item.question,
        "truth": item.truth,
        "text": reply.text,
        "verdict": item.judged(reply.text),
        "usage": [reply.usage.prompt_tokens, reply.usage.image_tokens],
        "finish": reply.finish_reason,
        "ms": round(reply.timings.total_ms, 1),
        "tokens": [
            [t.id, t.text, round(t.logprob, 4), [[c.id, round(c.logprob, 4)] for c in t.top]]
            for t in reply.tokens
        ],
    }
    record.add(row, np.stack(watched.seen[: len(reply.tokens)]), grey)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="onnx", help="such as onnx+llamacpp")
    parser.add_argument("--adapter", help="a pack of adapters/, such as shapes")
    parser.add_argument("--task", nargs="+", choices=[task.name for task in TASKS])
    parser.add_argument("--count", type=int, default=10**6, help="questions at most")
    options = parser.parse_args()
    chosen = [task for task in TASKS if not options.task or task.name in options.task]
    name = "-".join(filter(None, (options.runtime, options.adapter)))
    with Record(FOLDER / name) as record:
        collect(record, chosen, options.count, options.runtime, options.adapter)


if __name__ == "__main__":
    main()
