"""What the commands of a noun share: examples in their help, JSON, tables, and a yes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from edgevlm.models.publish import Verification

_FILE_WIDTH = 200  # columns, where nobody's terminal says

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


def command(
    noun: click.Group, name: str, *examples: str, short: str | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Add a command to `noun`. `short` is for the list of commands, where the first sentence
    of its help would be cut."""
    lines = "\n".join(f"  edgevlm {noun.name} {name}{' ' if e else ''}{e}" for e in examples)
    return noun.command(name, epilog=f"\b\nExamples:\n{lines}\n", short_help=short)


def make_table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "runtime"))
    return table


def print_table(table: Table) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(width=width, highlight=False, markup=False).print(table)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def confirm_removal(name: str, yes: bool) -> None:
    """Ask a person at a terminal; raise UsageError where nobody is to be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"Removing {name} needs a yes.", hint="Add --yes.")
    click.confirm(f"Remove {name}?", abort=True, err=True)


def tell_verified(
    results: Sequence[Verification],
    called: Callable[[Verification], str],
    nothing: str,
    *,
    as_json: bool,
) -> str:
    """Print what was verified, each by what it is `called`, or `nothing`. Returns all that is
    damaged in one line, which is empty where nothing is."""
    if as_json:
        print_json([{**asdict(result), "folder": str(result.folder)} for result in results])
    else:
        for result in results:
            state = "damaged" if result.altered else "ok"
            click.echo(f"{called(result)}: {result.files} files, {state}")
        if not results:
            click.echo(nothing)
    return "; ".join(f"{r.name}: {path}: {why}" for r in results for path, why in r.altered.items())
