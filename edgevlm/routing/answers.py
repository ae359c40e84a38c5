"""Answers with the verdict on them, read from JSON Lines: what calibrations are made from.

A line is what `edgevlm chat --json --tokens` prints, with `question`, `right` (true or false) and
what may be left out: `picture` (a name, the same for questions about the same picture), `image`
(its file), `picture_stats` (in place of the file), `task` (to report by), `edition` (of the model,
where it isn't the catalog's) and `strong_right` (whether a stronger model has it right).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import UsageError
from edgevlm.media import load_image
from edgevlm.messages import ActiveAdapter, Token, TopToken
from edgevlm.models.catalog import load_catalog
from edgevlm.routing.arrays import Bools, Floats, Rows
from edgevlm.routing.calibration import PREFIXES, Subject, digest_of
from edgevlm.routing.features import BASELINES, Asked, baselines_of, features_of
from edgevlm.routing.picture import PictureStats, picture_stats
from edgevlm.routing.question import question_type

_SHAPE = "A line is what `edgevlm chat --json --tokens` prints, with `question` and `right`."


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, judged. `strong_right` is None where no stronger model was asked."""

    subject: Subject
    tokens: tuple[Token, ...]
    asked: Asked
    right: bool
    picture: str
    task: str
    strong_right: bool | None = None


def read_answers(path: Path) -> list[Answer]:
    """Raises UsageError for a file that can't be read, and names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Can't read {path}: {error}.", hint=_SHAPE) from error
    return list(_read_lines(lines, path))


def _read_lines(lines: Iterable[str], path: Path) -> Iterator[Answer]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield read_answer(json.loads(line), f"line {number}", path.parent)
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"Line {number} of {path.name}: {what}.", hint=_SHAPE) from error


def read_answer(row: Mapping[str, Any], name: str, folder: Path) -> Answer:
    """One line; `name` is its picture's where it gives none, and `image` may lie in `folder`.

    Raises KeyError, TypeError or ValueError for what is no answer, and what `load_image` raises.
    """
    if not isinstance(row["right"], bool):
        raise TypeError("`right` must be true or false")
    question, usage = str(row["question"]), row["usage"]
    model = str(row["model"])
    adapters = [ActiveAdapter(str(a["name"]), float(a["scale"])) for a in row["adapter"]]
    asked = Asked(
        question,
        _stats(row, folder),
        int(usage["prompt_tokens"]),
        int(usage["image_tokens"]),
    )
    strong = row.get("strong_right")
    return Answer(
        Subject.of(model, _edition(row, model), str(row["quantization"]), adapters),
        tuple(_token(token) for token in row["tokens"]),
        asked,
        row["right"],
        str(row.get("picture", row.get("image", name))),
        str(row.get("task", question_type(question))),
        None if strong is None else bool(strong),
    )


def _edition(row: Mapping[str, Any], model: str) -> int | None:
    if "edition" in row:
        return None if row["edition"] is None else int(row["edition"])
    entry = load_catalog().entries.get(model)
    return None if entry is None else entry.edition


def _stats(row: Mapping[str, Any], folder: Path) -> PictureStats | None:
    if "picture_stats" in row:
        return PictureStats.of_dict(row["picture_stats"])
    if "image" in row:
        return picture_stats(load_image(folder / str(row["image"])))
    return None


def _token(token: Mapping[str, Any]) -> Token:
    top = tuple(TopToken(int(c["id"]), str(c["text"]), float(c["logprob"])) for c in token["top"])
    return Token(int(token["id"]), str(token["text"]), float(token["logprob"]), top)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """n answers as arrays: `features` [n, d], those of the first tokens by their number (rows of
    answers that are shorter are not in `longer`), `baselines` [n] each, `right` [n]; `pooled`
    [n, PROBED] where somebody kept logits."""

    features: Floats
    prefixes: Mapping[int, Floats]
    longer: Mapping[int, Bools]
    baselines: Mapping[str, Floats]
    right: Bools
    pictures: tuple[str, ...]
    tasks: tuple[str, ...]
    strong: Bools | None = None
    pooled: Floats | None = None

    def __len__(self) -> int:
        return len(self.right)

    @property
    def digest(self) -> str:
        return digest_of(self.features, self.right.astype(np.float64))

    def part(self, rows: Rows) -> Table:
        """The answers of these rows."""
        return Table(
            self.features[rows],
            {n: features[rows] for n, features in self.prefixes.items()},
            {n: longer[rows] for n, longer in self.longer.items()},
            {name: values[rows] for name, values in self.baselines.items()},
            self.right[rows],
            tuple(self.pictures[i] for i in rows),
            tuple(self.tasks[i] for i in rows),
            None if self.strong is None else self.strong[rows],
            None if self.pooled is None else self.pooled[rows],
        )


def tabulate(answers: Sequence[Answer], features: Callable[..., Floats] = features_of) -> Table:
    """The answers of one subject as arrays. Raises UsageError for none, or of several."""
    subjects = list(dict.fromkeys(answer.subject for answer in answers))
    if not subjects:
        raise UsageError("There are no answers.", hint=_SHAPE)
    if len(subjects) > 1:
        raise UsageError(
            f"The answers are of {subjects[0].described} and of {subjects[1].described}.",
            hint="Calibrate each by itself: split the file.",
        )
    figures = [baselines_of(a.tokens, a.asked.question) for a in answers]
    strong = [a.strong_right for a in answers]
    return Table(
        np.stack([features(a.tokens, a.asked) for a in answers]),
        {n: np.stack([features(a.tokens[:n], a.asked) for a in answers]) for n in PREFIXES},
        {n: np.array([len(a.tokens) > n for a in answers]) for n in PREFIXES},
        {name: np.array([f[name] for f in figures]) for name in BASELINES},
        np.array([a.right for a in answers]),
        tuple(a.picture for a in answers),
        tuple(a.task for a in answers),
        None if None in strong else np.array(strong, dtype=bool),
    )
