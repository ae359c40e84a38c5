"""What collect.py wrote, as answers and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bed import kind_of
from collect import FOLDER
from numpy.typing import NDArray

from edgevlm.messages import ActiveAdapter, Token, TopToken
from edgevlm.routing.answers import Answer, Table, tabulate
from edgevlm.routing.calibration import Subject
from edgevlm.routing.features import Asked
from edgevlm.routing.picture import stats_of_grey
from edgevlm.routing.probe import PROBED, centred

EDITION = 5
QUANTIZATION = {
    "onnx": "decoder q4, vision fp16",
    "onnx+llamacpp": "decoder q4_1, vision fp16",
}


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """A line of answers.jsonl, and the logits [tokens, PROBED] of its steps."""

    row: dict[str, Any]
    answer: Answer
    logits: NDArray[np.float16]


def load(name: str, folder: Path = FOLDER) -> list[Collected]:
    """All of build/routing/`name`, such as onnx or onnx-shapes."""
    return list(_read(folder / name, name))


def _read(folder: Path, name: str) -> Iterator[Collected]:
    runtime, _, adapter = name.partition("-")
    adapters = [ActiveAdapter(adapter)] if adapter else []
    subject = Subject.of("edgevlm-tiny", EDITION, QUANTIZATION[runtime], adapters)
    logits = np.memmap(folder / "logits.f16", np.float16, "r").reshape(-1, PROBED)
    greys = np.memmap(folder / "grey.u8", np.uint8, "r")
    at = grey_at = 0
    for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        height, width = row["grey"]
        grey = greys[grey_at : grey_at + height * width].reshape(height, width)
        steps = logits[at : at + len(row["tokens"])]
        at, grey_at = at + len(row["tokens"]), grey_at + height * width
        yield Collected(row, _answer(row, subject, np.array(grey)), steps)


def _answer(row: dict[str, Any], subject: Subject, grey: NDArray[np.uint8]) -> Answer:
    tokens = tuple(
        Token(i, text, logprob, tuple(TopToken(j, "", other) for j, other in top))
        for i, text, logprob, top in row["tokens"]
    )
    prompt_tokens, image_tokens = row["usage"]
    return Answer(
        subject,
        tokens,
        Asked(row["question"], stats_of_grey(grey, *row["size"]), prompt_tokens, image_tokens),
        row["verdict"] == "right",
        row["picture"],
        kind_of(row["task"], row["part"]),
    )


def tabled(name: str, strong: str = "", folder: Path = FOLDER) -> tuple[Subject, Table]:
    """The collection's subject and table. With `strong`, another collection, only what was asked
    of both, and which answers that one has right."""
    chosen = load(name, folder)
    if strong:
        right = {c.row["key"]: c.answer.right for c in load(strong, folder)}
        chosen = [
            replace(c, answer=replace(c.answer, strong_right=right[c.row["key"]]))
            for c in chosen
            if c.row["key"] in right
        ]
    table = tabulate([c.answer for c in chosen])
    pooled = np.stack([centred(c.logits.astype(np.float32)).mean(axis=0) for c in chosen])
    return chosen[0].answer.subject, replace(table, pooled=pooled.astype(np.float64))
