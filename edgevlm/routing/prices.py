"""What a call costs. Money is counted in whole nano-dollars, always rounded up: fractions of
a float would be lost over many small calls, and a count that errs must err upwards."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

NANO = 1_000_000_000
_PER_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is paid for. `prompt` counts text and pictures together."""

    prompt: int
    completion: int


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens of the prompt, and of the answer."""

    prompt: float
    completion: float

    def cost(self, tokens: Tokens) -> int:
        """In nano-dollars, rounded up."""
        dollars = (
            Decimal(str(self.prompt)) * tokens.prompt
            + Decimal(str(self.completion)) * tokens.completion
        ) / _PER_TOKENS
        return nano(dollars)


def nano(dollars: Decimal | float) -> int:
    exact = dollars if isinstance(dollars, Decimal) else Decimal(str(dollars))
    return int((exact * NANO).to_integral_value(ROUND_CEILING))


def dollars(nano_dollars: int) -> float:
    return nano_dollars / NANO


def dollars_text(value: float) -> str:
    """As a person reads it: $0.0042, $1.50."""
    return f"${value:.2f}" if value == 0 or value >= 1 else f"${value:.2g}"
