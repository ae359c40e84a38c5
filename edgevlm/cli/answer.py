"""An answer on the terminal: its text as it comes, and what goes with it."""

from __future__ import annotations

import click

from edgevlm.cli.background import read
from edgevlm.messages import Reply
from edgevlm.session import Session
from edgevlm.stream import Stream


def print_answer(session: Session, stream: Stream) -> Reply:
    """Print the text on stdout, and below it, a line each, the notices of its adapters.

    These go to stderr where the text is JSON, which a program may read to its end.
    """
    for token in read(session, stream):
        click.echo(token.text, nl=False)
    click.echo()
    reply = stream.reply
    for notice in reply.notices:
        click.secho(notice, dim=True, err=reply.structured)
    return reply
