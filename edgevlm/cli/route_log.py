"""`edgevlm route log`: which answers came from where, what was sent for them, what it cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgevlm.cli.nouns import json_option, make_table, print_json, print_table

if TYPE_CHECKING:
    from edgevlm.routing.log import Totals

EPILOG = """\b
Examples:
  edgevlm route log                 the last 20 answers, and the sums of all
  edgevlm route log --last 100 --json
  edgevlm route log --clear         forget them
"""


@click.command("log", epilog=EPILOG, short_help="Show which answers came from where.")
@click.option("-n", "--last", type=click.IntRange(0), default=20, metavar="N", show_default=True)
@click.option("--clear", is_flag=True, help="Forget all answers and sums.")
@json_option
def log(last: int, clear: bool, as_json: bool) -> None:
    """Show the last answers: who gave them and why, what left the device, what it cost.

    Questions and answers are in it only with EDGEVLM_LOG_PROMPTS=1.
    """
    from edgevlm.routing.log import RouteLog
    from edgevlm.settings import load_settings

    answers = RouteLog(load_settings().home)
    try:
        if clear:
            answers.clear()
        entries, totals = answers.last(last), answers.totals()
    finally:
        answers.close()
    if as_json:
        print_json({"answers": entries, "totals": totals_json(totals)})
        return
    if entries:
        _print_entries(entries)
    click.echo(totals_text(totals))


def totals_json(totals: Totals) -> dict[str, Any]:
    return {
        **asdict(totals),
        "answers": totals.answers,
        "saved_usd": totals.saved_usd,
        "saved_bytes": totals.saved_bytes,
    }


def totals_text(totals: Totals) -> str:
    """The shares in one line: how many answers came from where, and what that saved."""
    from edgevlm.models.disk import size_text
    from edgevlm.routing.prices import dollars_text

    if not totals.answers:
        return "No answers yet."
    shares = (("local", totals.local), ("cache", totals.cache), ("cloud", totals.cloud))
    counted = ", ".join(f"{s.answers} {n} ({s.answers / totals.answers:.0%})" for n, s in shares)
    sent = sum(share.bytes for _, share in shares)
    usd = sum(share.usd for _, share in shares)
    text = f"{totals.answers} answers: {counted}; sent {size_text(sent)} for {dollars_text(usd)}"
    if totals.saved_usd is None or totals.saved_bytes is None:
        return text
    saved = f"{dollars_text(totals.saved_usd)} and {size_text(totals.saved_bytes)}"
    return f"{text}; saved about {saved}"


def _print_entries(entries: list[dict[str, Any]]) -> None:
    from edgevlm.models.disk import size_text
    from edgevlm.routing.prices import dollars_text

    table = make_table("when (UTC)", "from", "confidence", "sent", "cost", "to", "why")
    for entry in entries:
        cloud = entry.get("cloud") or {}
        confidence = entry["confidence"]
        sent = sum(entry["sent"].values())
        cost = entry["cost_usd"]
        unknown = "not known" if cloud else "-"
        table.add_row(
            entry["at"].replace("T", " ").removesuffix("Z"),
            entry["decision"] + (" (unsure)" if entry["unsure"] else ""),
            "-" if confidence is None else f"{confidence:.2f}",
            size_text(sent) if sent else "-",
            unknown if cost is None else dollars_text(cost),
            f"{cloud['model']} at {cloud['provider']}" if cloud and sent else "-",
            entry["reason"],
        )
    print_table(table)
