"""`edgevlm cloud`: which cloud model may be asked, what may be sent to it, what it has cost."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgevlm.cli.nouns import command, json_option, print_json
from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgevlm.routing.provider import Provider

KINDS = ("text", "image", "embedding")
NOTHING_YET = "nothing: `edgevlm cloud allow text image` allows it"
EPILOG = """\b
Examples:
  edgevlm cloud set --base-url https://api.example.com/v1 --model NAME
  edgevlm cloud set --price-in 0.15 --price-out 0.60 --budget-day 0.50
  edgevlm cloud allow text image              nothing may be sent before that
  edgevlm cloud deny                          and nothing after that
  edgevlm cloud status                        what is set, allowed and spent

\b
The key comes from the variable EDGEVLM_CLOUD_API_KEY (or the one that --api-key-env names),
or from the system's keyring: `keyring set edgevlm BASE_URL`. It is never written to a file.

\b
Exit codes: 0 done, 2 wrong usage, 5 what is set can't be read.
"""


def dollars(value: str) -> float | None:
    """An amount, or None for `none`, which takes away what was set."""
    if value.strip().lower() == "none":
        return None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter("give US dollars, such as 0.15, or none") from None


@click.group(epilog=EPILOG)
def cloud() -> None:
    """Name a cloud model, and say what may be sent to it."""


@command(
    cloud,
    "set",
    "--base-url https://api.example.com/v1 --model NAME",
    "--budget-day 0.50 --budget-month 5",
    "--budget-day none",
    short="Name the cloud model, its prices and limits.",
)
@click.option("--base-url", metavar="URL", help="Where its OpenAI-compatible API is.")
@click.option("--model", metavar="NAME", help="What the provider calls the model.")
@click.option("--api-key-env", metavar="VAR", help="The variable that holds the key.")
@click.option(
    "--price-in", type=dollars, metavar="USD", help="A million tokens of the question and pictures."
)
@click.option("--price-out", type=dollars, metavar="USD", help="A million tokens of the answer.")
@click.option(
    "--budget-day", type=dollars, metavar="USD", help="The most that a day (UTC) may cost."
)
@click.option(
    "--budget-month", type=dollars, metavar="USD", help="The most that a month (UTC) may cost."
)
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="For one answer.")
@click.option("--attempts", type=int, metavar="N", help="How often one is tried, at most.")
@click.option("--picture-side", type=int, metavar="PIXELS", help="Longest side that is sent.")
@click.option("--picture-tokens", type=int, metavar="N", help="The most that a picture counts.")
@click.option("--answer-usd", type=float, metavar="USD", help="Worth of a right answer.")
@click.option("--second-usd", type=float, metavar="USD", help="Price of a second of waiting.")
@click.option("--text-usd", type=float, metavar="USD", help="Price of a question's privacy.")
@click.option("--picture-usd", type=float, metavar="USD", help="Price of a picture's privacy.")
@click.option("--accuracy", type=float, metavar="0..1", help="How often the cloud is right.")
@json_option
def set_provider(as_json: bool, **given: Any) -> None:
    """Name the cloud model. What isn't given stays as it is.

    Prices are for a million tokens, as providers publish them; without them a cost is not known
    and no budget can be kept. The last five options are what route `auto` weighs; their help
    says of what.
    """
    from edgevlm.routing.provider import read_provider, write_provider

    home, context = _home(), click.get_current_context()
    said = {n for n in given if context.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    provider = _changed(read_provider(home), {name: given[name] for name in said})
    write_provider(home, provider)
    _show(home, provider, as_json=as_json)


@command(cloud, "allow", "text image", "embedding", short="Allow kinds of data to be sent.")
@click.argument("kinds", nargs=-1, required=True, type=click.Choice(KINDS))
@json_option
def allow(kinds: tuple[str, ...], as_json: bool) -> None:
    """Allow KINDS to be sent to the provider that is set, and to no other.

    text: questions and the conversation. image: pictures, made anew from their pixels.
    embedding: what the vision encoder makes of pictures, from which they can be guessed.
    """
    from edgevlm.routing import consent

    home, provider = _home(), _provider()
    consent.allow(home, provider, kinds)
    _tell_consent(home, provider, as_json=as_json)


@command(cloud, "deny", "", "image", short="Forbid kinds of data to be sent; all of them.")
@click.argument("kinds", nargs=-1, type=click.Choice(KINDS))
@json_option
def deny(kinds: tuple[str, ...], as_json: bool) -> None:
    """Forbid KINDS to be sent, or everything."""
    from edgevlm.routing import consent

    home, provider = _home(), _provider()
    consent.deny(home, provider, kinds or KINDS)
    _tell_consent(home, provider, as_json=as_json)


@command(cloud, "status", "", "--json", short="Show what is set, allowed and spent.")
@json_option
def status(as_json: bool) -> None:
    """Show the cloud model, what may be sent to it, and what it has cost. Asks nobody."""
    from edgevlm.routing.provider import read_provider

    home = _home()
    provider = read_provider(home)
    if provider is not None:
        _show(home, provider, as_json=as_json)
    elif as_json:
        print_json(None)
    else:
        click.echo("No cloud model is set up: nothing leaves this device.")


def _home() -> Path:
    from edgevlm.settings import load_settings

    return load_settings().home


def _provider() -> Provider:
    from edgevlm.routing.provider import read_provider

    provider = read_provider(_home())
    if provider is None:
        raise UsageError(
            "No cloud model is set up.",
            hint="`edgevlm cloud set --base-url URL --model NAME` names one.",
        )
    return provider


def _changed(before: Provider | None, given: dict[str, Any]) -> Provider:
    from edgevlm.routing.provider import Limits, Provider, Weights, check_base_url

    parts: dict[str, Any] = {}
    for part, kind in (("limits", Limits), ("weights", Weights)):
        own = {f.name: given.pop(f.name) for f in fields(kind) if f.name in given}
        parts[part] = replace(getattr(before, part) if before else kind(), **own)
    if before is None:
        if "base_url" not in given or "model" not in given:
            raise UsageError("A cloud model needs --base-url and --model.")
        return Provider(**_money(None, given), **parts)
    url, model = given.get("base_url", before.base_url), given.get("model", before.model)
    same = (check_base_url(url), model) == (before.base_url, before.model)
    # Another model has other prices.
    return replace(before, **_money(before if same else None, given), **parts)


def _money(before: Provider | None, given: dict[str, Any]) -> dict[str, Any]:
    """`given` with its two prices in one."""
    from edgevlm.routing.prices import Prices

    old = before.prices if before else None
    price_in = given.pop("price_in", old and old.prompt)
    price_out = given.pop("price_out", old and old.completion)
    if (price_in is None) != (price_out is None):
        raise UsageError("A price needs both --price-in and --price-out.")
    prices = None if price_in is None or price_out is None else Prices(price_in, price_out)
    return {**given, "prices": prices}


def _document(home: Path, provider: Provider) -> dict[str, Any]:
    from edgevlm.routing.consent import allowed
    from edgevlm.routing.keys import key_source
    from edgevlm.routing.ledger import Ledger

    ledger = Ledger(home)
    try:
        spending = ledger.spending()
    finally:
        ledger.close()
    return {
        **provider.to_dict(),
        "key": key_source(provider),
        "allowed": [kind for kind in KINDS if kind in allowed(home, provider)],
        "spent": asdict(spending),
    }


def _show(home: Path, provider: Provider, *, as_json: bool) -> None:
    from edgevlm.settings import load_settings

    document = _document(home, provider)
    if as_json:
        print_json(document)
        return
    key = f"in the {document['key']}" if document["key"] else _no_key(provider)
    click.echo(f"{provider.model} at {provider.base_url}")
    click.echo(f"  key      {key}")
    click.echo(f"  may send {', '.join(document['allowed']) or NOTHING_YET}")
    click.echo(f"  price    {_prices(provider)}")
    click.echo(f"  budget   {_budgets(provider)}")
    click.echo(f"  spent    {_spent(document['spent'])}")
    limits = provider.limits
    click.echo(
        f"  limits   {limits.timeout_s:g} s, {limits.attempts} tries,"
        f" pictures of {limits.picture_side} pixels and at most {limits.picture_tokens} tokens"
    )
    if load_settings().offline:
        click.echo("EDGEVLM_OFFLINE is set: nothing is sent.")


def _tell_consent(home: Path, provider: Provider, *, as_json: bool) -> None:
    from edgevlm.routing.consent import allowed

    kinds = [kind for kind in KINDS if kind in allowed(home, provider)]
    if as_json:
        print_json({"provider": provider.base_url, "model": provider.model, "allowed": kinds})
    else:
        click.echo(
            f"{' and '.join(kinds).capitalize() or 'Nothing'} may be sent to {provider.called}."
        )


def _no_key(provider: Provider) -> str:
    if provider.on_this_device:
        return "none, and none needed on this device"
    return f"none: set the variable {provider.api_key_env}"


def _prices(provider: Provider) -> str:
    prices = provider.prices
    if prices is None:
        return "not known: give --price-in and --price-out"
    return f"${prices.prompt:g} in and ${prices.completion:g} out for a million tokens"


def _budgets(provider: Provider) -> str:
    budgets = (("day", provider.budget_day), ("month", provider.budget_month))
    return ", ".join(f"${usd:g} a {name}" for name, usd in budgets if usd is not None) or "none"


def _spent(spent: dict[str, Any]) -> str:
    from edgevlm.routing.prices import dollars_text

    text = f"{dollars_text(spent['day'])} today, {dollars_text(spent['month'])} this month (UTC)"
    if spent["reserved"]:
        text += f"; {dollars_text(spent['reserved'])} of it for calls without an end"
    if spent["later"]:
        text += f"; {dollars_text(spent['later'])} of it on days to come, by a clock that was wrong"
    if spent["unpriced"]:
        text += f"; {spent['unpriced']} calls at an unknown price"
    return text
