"""`edgevlm chat`: one question, or a conversation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.errors import Interrupted, UsageError
from edgevlm.settings import ROUTES

if TYPE_CHECKING:
    from edgevlm.session import Session
    from edgevlm.stream import Stream

EPILOG = """\b
Examples:
  edgevlm chat "What is in this picture?" --image photo.jpg
  edgevlm chat "Which of these is a cat?" --image a.jpg --image b.png
  edgevlm chat "What does scan.png say?"        a path in the question works too
  edgevlm chat "What happens?" --video clip.mp4
  edgevlm chat "List what you see." --image photo.jpg --schema objects.json
  edgevlm chat "What is this?" --image scan.png --adapter medical:0.8
  edgevlm chat --image photo.jpg --json
  cat photo.jpg | edgevlm chat --image - "What is this?"
  edgevlm chat --server http://127.0.0.1:8642 "What is this?" --image photo.jpg
  edgevlm chat                                  a conversation; /help lists its commands

\b
Exit codes: 0 done, 2 wrong usage or bad input, 3 model or adapter not to be had,
4 not supported or does not fit here, 130 interrupted.
"""


@click.command(epilog=EPILOG)
@click.argument("prompt", required=False)
@click.option("-i", "--image", "images", multiple=True, metavar="P", help="Path, https URL, or -.")
@click.option("--video", metavar="P", help="Path or https URL: up to 50 frames are shown.")
@click.option("-m", "--model", metavar="M", help="Model name, hub id or folder.")
@click.option("--runtime", metavar="R", help="Runtime; by default chosen for this device.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME[:SCALE]",
    help="An installed adapter, or a folder; more than one adds up.",
)
@click.option("--server", metavar="URL", help="Ask a running `edgevlm serve`.")
@click.option("--route", type=click.Choice(ROUTES), help="Who may answer.")
@click.option("-s", "--system", metavar="S", help="A system prompt; an adapter may bring one.")
@click.option("--max-tokens", type=int, metavar="N", help="Longest answer.  [default: 256]")
@click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: 0]")
@click.option("--top-p", type=float, metavar="P", help="Nucleus sampling.")
@click.option("--top-k", type=int, metavar="K", help="Sample among the K most likely.")
@click.option("--min-p", type=float, metavar="P", help="Drop tokens below this share of the best.")
@click.option("--repetition-penalty", type=float, metavar="X", help="Above 1 repeats less.")
@click.option("--seed", type=int, metavar="N", help="Make sampling repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text.")
@click.option(
    "--detail",
    type=click.Choice(["low", "auto", "high"]),
    default="auto",
    help="low never cuts an image into tiles, high always.",
)
@click.option(
    "--image-tokens", type=click.IntRange(min=1), metavar="N", help="The most an image may cost."
)
@click.option("--schema", metavar="FILE", help="Answer in JSON of this JSON Schema.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--tokens", is_flag=True, help="With --json: every token with its logprobs.")
def chat(
    prompt: str | None,
    images: tuple[str, ...],
    video: str | None,
    model: str | None,
    runtime: str | None,
    adapters: tuple[str, ...],
    server: str | None,
    route: str | None,
    system: str | None,
    as_json: bool,
    tokens: bool,
    detail: str,
    image_tokens: int | None,
    schema: str | None,
    **sampling: Any,
) -> None:
    """Ask PROMPT about the images or the video, or talk when there is no PROMPT.

    Without PROMPT and not on a terminal the question is "Describe this image."
    """
    options = {name: value for name, value in sampling.items() if value not in (None, ())}
    if tokens and not as_json:
        raise UsageError("--tokens needs --json.", hint="Add --json.")
    if tokens:
        options["top_logprobs"] = 5
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    talk = prompt is None and on_terminal and not as_json
    if not (prompt or "").strip() and not images and video is None and not talk:
        raise UsageError("There is no question.", hint="Give a PROMPT, an --image, or both.")
    question, pictures = _question(prompt, images)
    _check(pictures, video, options)
    options |= {"detail": detail, "image_tokens": image_tokens, "schema": _schema(schema)}
    with _open(model, runtime, route, system, adapters, server) as session:
        if talk:
            from edgevlm.cli.conversation import converse

            def reopen(name: str) -> Session:
                return _open(name, runtime, session.route, system, server=server)

            converse(session, reopen, pictures, options, video)
        else:
            stream = session.stream(question, pictures, video=video, **options)
            _once(session, stream, as_json, tokens)


def _question(prompt: str | None, images: tuple[str, ...]) -> tuple[str | None, list[Any]]:
    from edgevlm.cli.question import read_question
    from edgevlm.media import MediaLimits

    most = MediaLimits().max_bytes + 1  # one more, so that too much is seen to be too much
    pictures: list[Any] = [sys.stdin.buffer.read(most) if i == "-" else i for i in images]
    if prompt is None:
        return None, pictures
    question, found = read_question(prompt, shown_before=len(pictures))
    return question, [*pictures, *found]


def _check(pictures: list[Any], video: str | None, options: dict[str, Any]) -> None:
    """Refuse what can be refused before a model is fetched and loaded."""
    from edgevlm.engine.sampling import Sampling
    from edgevlm.media import load_image, open_video
    from edgevlm.session import media_limits
    from edgevlm.settings import load_settings

    Sampling(**options)
    limits = media_limits(load_settings())
    for position, picture in enumerate(pictures):
        pictures[position] = load_image(picture, limits=limits)
    if video is not None and "://" not in video:  # a URL is fetched once, with the question
        open_video(video, limits=limits).close()


def _schema(file: str | None) -> str | None:
    """The text of a schema file that llguidance can follow."""
    if file is None:
        return None
    from edgevlm.engine.grammar import check_schema
    from edgevlm.engine.schema import Schema
    from edgevlm.media.source import read_file

    try:
        schema = Schema.of(read_file(Path(file)).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a text.", hint="Give a JSON Schema file.") from error
    check_schema(schema.text)
    return schema.text


def _open(
    model: str | None,
    runtime: str | None,
    route: str | None,
    system: str | None,
    adapters: tuple[str, ...] = (),
    server: str | None = None,
) -> Session:
    from edgevlm.cli.progress import progress
    from edgevlm.session import Session

    def notice(line: str) -> None:
        click.echo(line, err=True)

    with progress() as shown:
        return Session(
            model,
            runtime,
            route,
            system,
            adapter=adapters,
            server=server,
            progress=shown,
            notice=notice,
        )


def _once(session: Session, stream: Stream, as_json: bool, tokens: bool) -> None:
    from edgevlm.cli.answer import print_answer, tell_route
    from edgevlm.cli.background import read

    if as_json:
        for _ in read(session, stream):
            pass
        reply = stream.reply
        click.echo(json.dumps(reply.to_dict(tokens=tokens), ensure_ascii=False))
    else:
        reply = print_answer(session, stream)
    tell_route(reply)
    if reply.structured and reply.finish_reason == "length":
        click.echo("The JSON is cut short: allow more with --max-tokens.", err=True)
    if reply.finish_reason == "cancelled":
        raise Interrupted("Stopped.")
