"""What the commands of a noun share: examples in their help, and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

_FILE_WIDTH = 200  # columns, where nobody's terminal says


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
