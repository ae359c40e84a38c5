"""What may leave the device: nothing, until its owner says so, and then to one provider.

`<home>/consent.json` names that provider by address and model. Another address, or another
model, finds every kind forbidden again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args

from edgevlm.errors import CloudNotAllowed, UsageError
from edgevlm.media.describe import shown
from edgevlm.routing.provider import Provider
from edgevlm.routing.state import change_json, read_json

Kind = Literal["text", "image", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILE = "consent.json"


def allowed(home: Path, provider: Provider) -> frozenset[Kind]:
    """The kinds that may be sent to this provider. Raises CloudNotAllowed for a broken file."""
    return _kinds(read_json(home / FILE), provider)


def allow(home: Path, provider: Provider, kinds: Collection[str]) -> frozenset[Kind]:
    """Allow these kinds too; returns all that are allowed now. What another provider was
    allowed ends here. Raises UsageError, CloudNotAllowed, NoSpace, ModelUnavailable."""
    more = _checked(kinds)
    return _change(home, provider, lambda before: before | more)


def deny(home: Path, provider: Provider, kinds: Collection[str]) -> frozenset[Kind]:
    """Forbid these kinds; returns what is still allowed. Raises what `allow` raises."""
    less = _checked(kinds)
    return _change(home, provider, lambda before: before - less)


def require(home: Path, provider: Provider, kinds: Collection[Kind]) -> None:
    """Raise CloudNotAllowed unless all of `kinds` may be sent to this provider."""
    missing = [kind for kind in KINDS if kind in kinds and kind not in allowed(home, provider)]
    if missing:
        raise CloudNotAllowed(
            f"There is no consent to send {' or '.join(missing)} to {provider.called}.",
            hint=f"`edgevlm cloud allow {' '.join(missing)}` gives it.",
        )


def _kinds(data: dict[str, Any] | None, provider: Provider) -> frozenset[Kind]:
    if data is None or data.get("provider") != provider.id:
        return frozenset()
    kinds = data.get("kinds")
    return frozenset(kind for kind in KINDS if isinstance(kinds, list) and kind in kinds)


def _change(
    home: Path, provider: Provider, change: Callable[[frozenset[Kind]], frozenset[Kind]]
) -> frozenset[Kind]:
    after: frozenset[Kind] = frozenset()

    def change_data(data: dict[str, Any] | None) -> dict[str, Any]:
        nonlocal after
        after = change(_kinds(data, provider))
        return {"provider": provider.id, "kinds": [kind for kind in KINDS if kind in after]}

    change_json(home / FILE, change_data)
    return after


def _checked(kinds: Collection[str]) -> frozenset[Kind]:
    strange = [shown(kind) for kind in kinds if kind not in KINDS]
    if strange:
        raise UsageError(f"{strange[0]!r} can't be allowed.", hint=f"Kinds: {', '.join(KINDS)}.")
    return frozenset(kind for kind in KINDS if kind in kinds)
