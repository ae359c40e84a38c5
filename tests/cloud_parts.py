"""A cloud for tests: consent given, a price, a key to look for, and pauses that nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgevlm.engine.cancel import Cancel
from edgevlm.messages import Reply, Route, Timings, Usage
from edgevlm.routing import consent
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.prices import Prices
from edgevlm.routing.provider import KEY_VARIABLE, Limits, Provider

CANARY = "sk-canary-0123456789abcdef"
PRICES = Prices(prompt=10.0, completion=30.0)

# A local answer of small confidence.
REPLY = Reply(
    text="A circle for Ann.",
    tokens=(),
    model="edgevlm-tiny",
    runtime={},
    quantization="4-bit",
    finish_reason="stop",
    usage=Usage(),
    timings=Timings(total_ms=12.0),
    route=Route("local", "confidence 0.31; the cloud was not asked: no consent"),
    confidence=0.31,
    unsure=True,
)

MakeCloud = Callable[..., Cloud]
_CLOUD = ("ledger", "breaker", "offline", "wait")


class Pauses(list[float]):
    """Waits that are noted and not waited."""

    def __call__(self, seconds: float, cancel: Cancel) -> None:
        self.append(seconds)


def make_cloud(
    home: Path, url: str, allow: Iterable[str] = ("text", "image"), **given: Any
) -> Cloud:
    """The provider at `url`, which may get what `allow` says and no more. Keywords are fields of
    `Provider` and `Limits`, and arguments of `Cloud`."""
    own = {name: given.pop(name) for name in Limits.__dataclass_fields__ if name in given}
    parts = {name: given.pop(name) for name in _CLOUD if name in given}
    key = given.pop("key", CANARY)
    limits = Limits(**{"timeout_s": 20.0, **own})
    provider = Provider(url, **{"model": "m", "prices": PRICES, "limits": limits, **given})
    consent.deny(home, provider, consent.KINDS)
    consent.allow(home, provider, list(allow))
    return Cloud(home, provider, environ={KEY_VARIABLE: key}, **parts)
