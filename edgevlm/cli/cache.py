"""`edgevlm cache`: what is kept of answers, and forgetting it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgevlm.cli.nouns import command, json_option, print_json

if TYPE_CHECKING:
    from edgevlm.cache import AnswerCache

EPILOG = """\b
Examples:
  edgevlm cache stats                how many answers are kept, and where
  edgevlm cache clear                forget them
  EDGEVLM_CACHE=0 edgevlm chat       answer without them

\b
Exit codes: 0 done, 2 wrong usage, 4 the disk fails or forbids it.
"""


@click.group(epilog=EPILOG)
def cache() -> None:
    """Show or forget the answers that are kept.

    A question that was asked before, about the same pictures, of the same model with the same
    settings, is answered from them.
    """


@command(cache, "stats", "", "--json", short="Show what is kept.")
@json_option
def stats(as_json: bool) -> None:
    """Show how many answers are kept, how large they are, and how often they served."""
    from edgevlm.models.disk import size_text

    with closing(_cache()) as answers:
        found = answers.stats()
        if as_json:
            folder = str(answers.database.folder)
            limit = {"mode": answers.mode, "folder": folder, "limit_bytes": answers.limit_bytes}
            print_json({**limit, **asdict(found)})
            return
        click.echo(f"{answers.database.folder}: {_MODES[answers.mode]}")
        kept = f"{found.entries} answer{'' if found.entries == 1 else 's'}"
        limit_text = size_text(answers.limit_bytes)
        click.echo(
            f"{kept}, {size_text(found.bytes)} of at most {limit_text}, served {found.hits} times"
        )
        if found.set_aside:
            click.echo(f"{found.set_aside} damaged or foreign set aside; `cache clear` removes it")


@command(cache, "clear", "", "--json", short="Forget all answers.")
@json_option
def clear(as_json: bool) -> None:
    """Forget all answers, so that none can be read from the disk any more."""
    from edgevlm.models.disk import size_text

    with closing(_cache()) as answers:
        before = answers.database.file_bytes()
        removed = answers.clear()
        freed = max(before - answers.database.file_bytes(), 0)
    if as_json:
        print_json({"removed": removed, "freed": freed})
    else:
        click.echo(
            f"{removed} answer{'' if removed == 1 else 's'} forgotten, {size_text(freed)} freed."
        )


_MODES = {
    "on": "answers are kept",
    "off": "off, no answers are kept or used",
    "near": "answers are kept, and serve for pictures that differ by noise too",
}


def _cache() -> AnswerCache:
    from edgevlm.cache import AnswerCache
    from edgevlm.settings import load_settings

    return AnswerCache(load_settings())
