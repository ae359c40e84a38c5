"""What a training run is told: by the command line, by a `train.toml`, or by both."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgevlm.adapters.manifest import LONGEST_NOTICE, UNKNOWN_LICENCE
from edgevlm.adapters.peft_config import MAX_RANK
from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD
from edgevlm.errors import UsageError
from edgevlm.models.names import check_name

TARGETS = {"all-linear": (*ATTENTION, *FEED_FORWARD), "attention": ATTENTION}
DEVICES = ("auto", "cpu", "cuda", "mps")
DEFAULT_EPOCHS = 3
# What an edgevlm.json holds of each.
_LONGEST = {"title": 120, "license": 120, "notice": LONGEST_NOTICE}
_LONGEST_OF_LINES = {"description": 2000, "system": 8000}
_VERSION = re.compile(r"\d{1,6}\.\d{1,6}\.\d{1,6}", re.ASCII)
# What changes neither what is learned nor how, or is known by its contents instead.
_FREE = frozenset(
    (
        *("data", "model", "out", "device", "threads"),
        *("title", "description", "version", "license", "notice"),
    )
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a run goes by. Raises UsageError for what can't be.

    It ends after `steps` steps or `epochs` rounds through the data, whichever is first (3 rounds
    where neither is given), or when `patience` evaluations in a row found nothing better.
    `eval_share` of the examples is kept apart for these; 0 evaluates nothing. `lr` is the
    learning rate at its highest.
    """

    data: Path
    name: str
    out: Path
    model: str = "edgevlm-tiny"
    rank: int = 8
    alpha: float = 16.0
    targets: str = "all-linear"
    epochs: int | None = None
    steps: int | None = None
    lr: float = 5e-4
    batch: int = 4
    eval_share: float = 0.1
    patience: int = 3
    device: str = "auto"
    seed: int = 0
    threads: int | None = None
    title: str = ""
    description: str = ""
    version: str = "1.0.0"
    license: str = UNKNOWN_LICENCE
    system: str | None = None
    notice: str | None = None

    def __post_init__(self) -> None:
        try:
            check_name(self.name)
        except ValueError as error:
            raise UsageError(f"An adapter can't be called so: {error}.") from error
        _require(1 <= self.rank <= MAX_RANK, "rank", self.rank, f"from 1 to {MAX_RANK}")
        _require(0 < self.alpha <= 1e4, "alpha", self.alpha, "above 0")
        _require(self.targets in TARGETS, "targets", self.targets, " or ".join(TARGETS))
        _require(self.device in DEVICES, "device", self.device, ", ".join(DEVICES))
        _require(0 < self.lr <= 1, "lr", self.lr, "above 0, such as 0.0005")
        _require(0 <= self.eval_share <= 0.5, "eval-share", self.eval_share, "from 0 to 0.5")
        _require(bool(_VERSION.fullmatch(self.version)), "version", self.version, "like 1.0.0")
        for name, most in {**_LONGEST, **_LONGEST_OF_LINES}.items():
            value = getattr(self, name) or ""
            allowed = "\n\t" if name in _LONGEST_OF_LINES else ""
            good = len(value) <= most and all(c.isprintable() or c in allowed for c in value)
            wanted = f"{most} letters at most" + ("" if allowed else ", in one line")
            _require(good, name, repr(value[:40]), wanted)
        for name in ("epochs", "steps", "batch", "patience", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "1 or more")

    @property
    def modules(self) -> tuple[str, ...]:
        """The linear modules of a layer that are trained: `self_attn.q_proj`."""
        return TARGETS[self.targets]

    def total_steps(self, n_samples: int) -> int:
        epochs = self.epochs or (DEFAULT_EPOCHS if self.steps is None else None)
        by_epochs = None if epochs is None else epochs * -(-n_samples // self.batch)
        return min(limit for limit in (self.steps, by_epochs) if limit is not None)

    def decisive(self) -> dict[str, Any]:
        """What a run that goes on must agree with, a number being itself in any spelling."""
        return {
            key: float(value) if isinstance(value, int) else value
            for key, value in asdict(self).items()
            if key not in _FREE
        }


def make_recipe(given: Mapping[str, Any], config: Path | None = None) -> Recipe:
    """A recipe of what was `given` (None is nothing) and, for the rest, of a `train.toml`.

    Raises UsageError for what is missing, unknown or of the wrong kind.
    """
    values = {} if config is None else _read_config(config)
    values |= {key: value for key, value in given.items() if value is not None}
    for key in ("data", "name"):
        if key not in values:
            raise UsageError(
                f"There is no {key} to train with.",
                hint="Give DATA and --name, or a --config train.toml that has them.",
            )
    values.setdefault("out", Path(values["name"]))
    return Recipe(**values)


def _read_config(path: Path) -> dict[str, Any]:
    """The fields of a `train.toml`, spelled as the options; paths count from its folder."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}.", hint="Give a TOML file.") from error
    kinds = {field.name: _kind(field.type, field.default) for field in fields(Recipe)}
    values: dict[str, Any] = {}
    for written, value in table.items():
        key = written.replace("-", "_")
        kind = kinds.get(key)
        if kind is None:
            known = ", ".join(name.replace("_", "-") for name in kinds)
            raise UsageError(f"{path} has the unknown {written!r}.", hint=f"Known: {known}.")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not (str if kind is Path else kind):
            raise UsageError(f"{path} has {written} = {value!r}, which is no {kind.__name__}.")
        values[key] = path.parent / str(value) if kind is Path else value
    return values


def _kind(annotation: Any, default: Any) -> type:
    """The type of a field that may be None as well: annotations are texts here."""
    if default not in (MISSING, None):
        return type(default)
    kinds: dict[str, type] = {"Path": Path, "int": int, "str": str}
    return kinds[str(annotation).partition(" ")[0]]


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name} can't be {value}.", hint=f"It is {wanted}.")
