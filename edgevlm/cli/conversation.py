"""The conversation mode of `edgevlm chat`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from typing import Any

import click

from edgevlm.adapters.store import AdapterStore
from edgevlm.cli import tell
from edgevlm.cli.answer import print_answer, sent_text
from edgevlm.cli.question import read_question
from edgevlm.errors import EdgeVLMError, UsageError
from edgevlm.families.base import check_detail
from edgevlm.media import find_image_paths, load_image, open_video
from edgevlm.messages import Reply
from edgevlm.session import Session, media_limits

HELP = """\
/image PATH    show a picture with the next question (a path in a question works too)
/video PATH    show a video with the next question
/detail D      low, auto or high: how finely pictures are cut into tiles
/adapter A ... answer with these adapters, such as medical:0.8; `none` takes them off
/model NAME    go on with another model, in a new conversation
/route R       local, auto or cloud
/reset         forget the conversation
/quit          leave (or Ctrl-D); Ctrl-C stops an answer
"""


def converse(
    session: Session,
    reopen: Callable[[str], Session],
    pictures: list[Any],
    options: dict[str, Any],
    video: str | None = None,
) -> None:
    """Talk until the user leaves. An error or a stopped answer leaves the conversation whole.

    `reopen` makes a session like this one with the model of that name.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    on = _on(session)
    where = f"{session.model.name} on {_where(session)}{f' with {on}' if on else ''}"
    click.secho(f"{where}. /help lists commands.", dim=True)
    talk = _Conversation(session, reopen, pictures, options, video)
    if pictures or video:
        talk.answer("")
    while talk.open:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            break
        except KeyboardInterrupt:
            click.echo("\n/quit or Ctrl-D leaves.", err=True)
            continue
        if line:
            _guarded(talk.command if _is_command(line) else talk.answer, line)
    talk.close()


def _guarded(act: Callable[[str], None], line: str) -> None:
    try:
        act(line)
    except EdgeVLMError as error:
        tell(error, error.message, error.hint)
    except KeyboardInterrupt:
        click.echo("\nStopped.", err=True)


def _is_command(line: str) -> bool:
    """Not a path from the root, as terminals write one that is dragged onto them."""
    return line.startswith("/") and "/" not in line.split()[0][1:]


def _where(session: Session) -> str:
    return " and ".join(sorted(set(session.model.runtime.values())))


def _on(session: Session) -> str:
    return ", ".join(_typed(name, scale) for name, scale in session.adapters.items())


class _Conversation:
    def __init__(
        self,
        session: Session,
        reopen: Callable[[str], Session],
        pictures: list[Any],
        options: dict[str, Any],
        video: str | None,
    ) -> None:
        self._first = self._session = session
        self._reopen = reopen
        self._pictures = pictures
        self._video = video
        self._options = options
        self.open = True

    def answer(self, line: str) -> None:
        question, found = read_question(line, shown_before=len(self._pictures))
        # Decoded first: a picture that fails must not cost those shown before it.
        pictures = [*self._pictures, *(self._load(path) for path in found)]
        stream = self._session.stream(question, pictures, video=self._video, **self._options)
        self._pictures, self._video = [], None
        reply = print_answer(self._session, stream)
        click.secho(_receipt(reply), dim=True, err=True)

    def _load(self, path: str) -> Any:
        return load_image(path, limits=media_limits(self._session.settings))

    def command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        act = getattr(self, f"_do_{name}", None)
        if act is None:
            raise UsageError(f"There is no command /{name}.", hint="/help lists the commands.")
        act(argument.strip())

    def close(self) -> None:
        if self._session is not self._first:
            self._session.close()

    def _do_help(self, _: str) -> None:
        click.echo(HELP, nl=False)

    def _do_image(self, typed: str) -> None:
        path = _unquoted(typed)
        if not path:
            raise UsageError("Which picture?", hint="/image PATH")
        rest, found = find_image_paths(path)  # which reads escaped spaces
        self._pictures += [self._load(name) for name in ([path] if rest else found)]
        click.secho("Shown with your next question.", dim=True)

    def _do_video(self, typed: str) -> None:
        path = _unquoted(typed)
        if not path:
            raise UsageError("Which video?", hint="/video PATH")
        open_video(path, limits=media_limits(self._session.settings)).close()
        self._video = path
        click.secho("Shown with your next question.", dim=True)

    def _do_detail(self, detail: str) -> None:
        if detail:
            self._options = self._options | {"detail": check_detail(detail)}
        click.echo(self._options["detail"])

    def _do_model(self, typed: str) -> None:
        name = _unquoted(typed)
        if not name:
            click.echo(self._session.model.name)
            return
        new = self._reopen(name)
        without = " without adapters" if self._session.adapters else ""
        self.close()
        self._session = new
        where = f"{new.model.name} on {_where(new)}"
        click.secho(f"{where}, a new conversation{without}.", dim=True)

    def _do_adapter(self, names: str) -> None:
        if names:
            self._session.use_adapters([] if names == "none" else _words(names))
        click.echo(f"On: {_on(self._session) or 'none'}.")
        if not names:
            installed = [a.name for a in AdapterStore(self._session.settings).list()]
            click.echo(f"Installed: {', '.join(installed) or 'none'}.")

    def _do_route(self, route: str) -> None:
        if route:
            self._session.set_route(route)
        click.echo(self._session.route)

    def _do_reset(self, _: str) -> None:
        self._session.reset()
        self._pictures, self._video = [], None
        click.secho("A new conversation.", dim=True)

    def _do_quit(self, _: str) -> None:
        self.open = False


def _unquoted(path: str) -> str:
    """As one who drags a file onto a terminal, or copies a path, may have it."""
    return path.strip("'\"")


def _words(line: str) -> list[str]:
    """Split as a shell does: a space in quotes, or behind a backslash, belongs to its word."""
    words = shlex.shlex(line, posix=True)
    words.whitespace_split, words.commenters = True, ""
    if os.sep == "\\":  # which there stands in paths
        words.escape = ""
    try:
        return list(words)
    except ValueError as error:
        raise UsageError(
            f"A quote in {line} is never closed.", hint='/adapter "a folder:0.8" other'
        ) from error


def _receipt(reply: Reply) -> str:
    times = reply.timings
    parts = [reply.route.decision, *(_typed(a.name, a.scale) for a in reply.adapter)]
    if reply.confidence is not None:
        parts.append(f"confidence {reply.confidence:.0%}")
    if reply.unsure:
        parts.append("not sure")
    parts.append(f"first token {times.ttft_ms:.0f} ms")
    if times.decode_tps:
        parts.append(f"{times.decode_tps:.0f} tokens/s")
    if sent := sent_text(reply):
        parts.append(f"sent {sent}")
    if reply.finish_reason == "cancelled":
        parts.append("stopped")
    return f"[{' · '.join(parts)}]"


def _typed(adapter: str, scale: float) -> str:
    """As `--adapter` takes it."""
    return adapter if scale == 1 else f"{adapter}:{scale:g}"
