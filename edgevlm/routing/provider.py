"""Which cloud model may be asked, at what price and within which limits: `<home>/cloud.json`.

`edgevlm cloud set` writes it. There is no key in it, nor anywhere else on the disk.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgevlm.errors import UsageError
from edgevlm.media.addresses import is_loopback
from edgevlm.media.describe import shown, url_shown
from edgevlm.routing.prices import Prices
from edgevlm.routing.state import change_json, read_json, unreadable

FILE = "cloud.json"
KEY_VARIABLE = "EDGEVLM_CLOUD_API_KEY"
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
# Capitals only, so that a key which somebody gives in its place is not taken, and not kept.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_PATH = re.compile(r"(/[A-Za-z0-9._~%+-]+)*/?")
_MOST_USD = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one call. `timeout_s` is for everything in it, tries and pauses too.

    `picture_side` is the longest side in pixels that a picture is sent with. `picture_tokens`
    is what one may cost at most; the default is what OpenAI's gpt-4o-mini, the hungriest of
    those whose formula is published, takes for 1024 x 1024 pixels.
    """

    timeout_s: float = 60.0
    attempts: int = 4
    picture_side: int = 1024
    picture_tokens: int = 25_600
    answer_bytes: int = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Weights:
    """What `auto` weighs against each other, all in US dollars.

    `answer_usd` is what a right answer in place of a wrong one is worth, `second_usd` what a
    second of waiting costs, `text_usd` and `picture_usd` what it costs you that a question
    or a picture leaves the device. `accuracy` is how often the cloud is right.
    """

    answer_usd: float = 0.05
    second_usd: float = 0.001
    text_usd: float = 0.0005
    picture_usd: float = 0.002
    accuracy: float = 0.9


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenAI-compatible endpoint and a model of it. Budgets are US dollars a UTC day, or month.

    Raises UsageError for what can't be.
    """

    base_url: str
    model: str
    api_key_env: str = KEY_VARIABLE
    prices: Prices | None = None
    budget_day: float | None = None
    budget_month: float | None = None
    limits: Limits = field(default_factory=Limits)
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", check_base_url(self.base_url))
        _check_names(self.model, self.api_key_env)
        _check_numbers(self)

    @property
    def id(self) -> str:
        """What consent is bound to, and the ledger counts by."""
        return f"{self.base_url} {self.model}"

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc

    @property
    def called(self) -> str:
        """As messages name it."""
        return f"{self.model} at {self.host}"

    @property
    def on_this_device(self) -> bool:
        return is_loopback(urlsplit(self.base_url).hostname or "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_provider(home: Path) -> Provider | None:
    """The provider that was set, None where none was. Raises CloudNotAllowed for a broken file."""
    data = read_json(home / FILE)
    if data is None:
        return None
    try:
        prices = data.pop("prices")
        limits, weights = Limits(**data.pop("limits")), Weights(**data.pop("weights"))
        return Provider(
            **data,
            prices=None if prices is None else Prices(**prices),
            limits=limits,
            weights=weights,
        )
    except (TypeError, ValueError, KeyError, AttributeError, UsageError) as error:
        raise unreadable(home / FILE) from error


def write_provider(home: Path, provider: Provider | None) -> None:
    """Set it, or none. Raises NoSpace, ModelUnavailable."""
    change_json(home / FILE, lambda _: None if provider is None else provider.to_dict())


def check_base_url(text: str) -> str:
    """The URL in one spelling. Raises UsageError, which never shows a password of it."""
    name = url_shown(text) if isinstance(text, str) else shown(type(text).__name__)
    hint = "Give it as https://host/v1, as your provider's documentation shows it."
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except (ValueError, AttributeError, TypeError):
        raise UsageError(f"{name} is not a URL.", hint=hint) from None
    if url.username is not None or url.password is not None:
        raise UsageError(
            f"{name} holds a user name or password.",
            hint=f"Give the URL without; a key comes from the variable {KEY_VARIABLE}.",
        )
    if url.query or url.fragment or not _PATH.fullmatch(url.path) or not _is_host(host):
        raise UsageError(f"{name} is not the address of an API.", hint=hint)
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(host)):
        raise UsageError(
            f"{name} is not https, and anyone between could read what is sent.",
            hint="Use https; http is for servers on this device, such as http://127.0.0.1:8000/v1.",
        )
    spelled = f"[{host}]" if ":" in host else host
    default = 443 if url.scheme == "https" else 80
    at = "" if port in (None, default) else f":{port}"
    return f"{url.scheme}://{spelled}{at}{url.path.rstrip('/')}"


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return re.fullmatch(r"(?=.{1,253}$)[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", host) is not None
    return True


def _check_names(model: object, variable: object) -> None:
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise UsageError(
            f"A model can't be called {shown(model)!r}.",
            hint="Use the name that your provider gives it, such as gpt-4o-mini.",
        )
    if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
        # What was given may be a key, so it isn't shown.
        raise UsageError(
            "The name of the variable with the key has capital letters, digits and '_'.",
            hint=f"Give the variable's name, such as {KEY_VARIABLE}, and never the key itself.",
        )


def _check_numbers(provider: Provider) -> None:
    money: dict[str, object] = {
        "budget_day": provider.budget_day,
        "budget_month": provider.budget_month,
    }
    if provider.prices is not None:
        money |= {"price_in": provider.prices.prompt, "price_out": provider.prices.completion}
    money |= {f.name: getattr(provider.weights, f.name) for f in fields(Weights)}
    for name, value in money.items():
        if value is not None:
            _check_number(name, value, 0.0, 1.0 if name == "accuracy" else _MOST_USD)
    ranges = {
        "timeout_s": (0.01, 3600),
        "attempts": (1, 20),
        "picture_side": (16, 8192),
        "picture_tokens": (1, 1_000_000),
        "answer_bytes": (1024, 2**30),
    }
    for name, (least, most) in ranges.items():
        _check_number(name, getattr(provider.limits, name), least, most)
        if name != "timeout_s" and not isinstance(getattr(provider.limits, name), int):
            raise UsageError(f"{name} is a whole number.")
    if (provider.budget_day, provider.budget_month) != (None, None) and provider.prices is None:
        raise UsageError(
            "A budget can't be kept while nobody says what the model costs.",
            hint="Give --price-in and --price-out too, in US dollars for a million tokens.",
        )


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not least <= value <= most
    ):
        raise UsageError(
            f"{name} can't be {shown(value)}.", hint=f"Use a number from {least:g} to {most:g}."
        )
