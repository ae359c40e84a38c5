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


def tell_route(reply: Reply) -> None:
    """Say on stderr what a reader must know: that it may be wrong, or what left the device."""
    if reply.unsure:
        click.secho(f"Not sure of this: {reply.route.reason}.", err=True)
    sent = sent_text(reply)
    if sent:
        click.secho(f"{reply.model} was sent {sent}.", dim=True, err=True)


def sent_text(reply: Reply) -> str:
    """What left the device for it and what it cost; empty where nothing did."""
    sent, cost = reply.route.sent, reply.route.cost_usd
    parts = [
        f"{size:,} bytes of {kind}"
        for kind, size in (
            ("text", sent.text_bytes),
            ("pictures", sent.image_bytes),
            ("embeddings", sent.embedding_bytes),
        )
        if size
    ]
    if parts and cost is not None:
        parts.append(f"at ${cost:.2g}")
    return ", ".join(parts)
