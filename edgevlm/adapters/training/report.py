"""What a run came to, for people and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Report:
    """Losses are nats for each answer token; those of evaluations are None without one.

    `held_out` of the `examples` beside them were evaluated with; `ended` says why it stopped,
    `tokens` counts positions, over all the `seconds` of its steps.
    """

    name: str
    folder: str
    model: str
    fingerprint: str | None
    examples: int
    held_out: int
    pictures: int
    steps: int
    best_step: int
    ended: str
    loss: float
    eval_loss: float | None
    base_eval_loss: float | None
    tokens: int
    seconds: float
    bf16: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
