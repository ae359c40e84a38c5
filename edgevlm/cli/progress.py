"""Long work shown on stderr: a bar on a terminal, single lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Shown:
    """An `edgevlm.models.progress.Progress` for people."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def start(self, total: int, label: str) -> None:
        self.finish()
        if not sys.stderr.isatty():
            click.echo(f"{label} ...", err=True)
            return
        self._bar = _bar()
        self._bar.add_task(label, total=total)
        self._bar.start()

    def advance(self, n: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=n)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def progress() -> Iterator[Shown]:
    """A progress that leaves the terminal clean, however the block ends."""
    shown = Shown()
    try:
        yield shown
    finally:
        shown.finish()


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
