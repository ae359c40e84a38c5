"""A cloud whose provider is on loopback: consent given, a price, and no pauses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm.engine.cancel import Cancel
from edgevlm.routing import consent
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.prices import Prices
from edgevlm.routing.provider import KEY_VARIABLE, Limits, Provider

CANARY = "sk-canary-0123456789abcdef"
PRICES = Prices(prompt=10.0, completion=30.0)

MakeCloud = Callable[..., Cloud]


class Pauses(list[float]):
    """Waits that are noted and not waited."""

    def __call__(self, seconds: float, cancel: Cancel) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def make_cloud(home: Path, pauses: Pauses) -> MakeCloud:
    """Make a cloud of the provider at a URL; keywords go to `Provider`, and to `Limits` where
    they are its fields."""

    def make(url: str, allow: tuple[str, ...] = ("text", "image"), **given: Any) -> Cloud:
        own = {name: given.pop(name) for name in Limits.__dataclass_fields__ if name in given}
        parts = {n: given.pop(n) for n in ("ledger", "breaker", "offline", "wait") if n in given}
        limits = Limits(**{"timeout_s": 20.0, **own})
        provider = Provider(url, "m", **{"prices": PRICES, "limits": limits, **given})
        consent.allow(home, provider, allow)
        return Cloud(home, provider, environ={KEY_VARIABLE: CANARY}, **{"wait": pauses, **parts})

    return make
