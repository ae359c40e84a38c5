"""A typed question, with the pictures that it names."""

from __future__ import annotations

import click

from edgevlm.media import find_image_paths, missing_picture


def read_question(typed: str, *, shown_before: int) -> tuple[str, list[str]]:
    """Return the question without the pictures it names, and these; say which is not there."""
    question, found = find_image_paths(typed, shown_before=shown_before)
    missing = missing_picture(question)
    if missing:
        click.echo(f"There is no file {missing}: it is read as text.", err=True)
    return question, found
