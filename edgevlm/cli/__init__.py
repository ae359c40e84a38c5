"""The command line. Each noun has its file; this one finds it and turns errors into exits."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

from edgevlm import __version__
from edgevlm.errors import EdgeVLMError, Interrupted, NoSpace

# The help lines stand here so that `edgevlm --help` imports no command.
COMMANDS = {
    "chat": ("edgevlm.cli.chat:chat", "Ask about a picture, or talk."),
    "model": ("edgevlm.cli.model:model", "List, fetch, check and remove models."),
    "adapter": ("edgevlm.cli.adapter:adapter", "Install, check, remove and train adapters."),
    "serve": ("edgevlm.cli.serve:serve", "Serve a model to OpenAI clients, with a page."),
    "cache": ("edgevlm.cli.cache:cache", "Show or forget the answers that are kept."),
    "route": ("edgevlm.cli.route:route", "Say how far local answers are trusted."),
    "device": ("edgevlm.cli.device:device", "Show this machine, and plan where a model runs."),
    "cloud": ("edgevlm.cli.cloud:cloud", "Name a cloud model, and say what may be sent to it."),
    "doctor": ("edgevlm.cli.doctor:doctor", "Say what works on this machine, and what doesn't."),
}

EPILOG = """\b
Examples:
  edgevlm chat "What is in this picture?" --image photo.jpg
  edgevlm chat                      talk, with /image to show something
  edgevlm model list
  edgevlm doctor
"""


class LazyGroup(click.Group):
    """Imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgevlm")
def cli() -> None:
    """Vision-language models on your own device."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that the outcome owns."""
    exit_code = run(arguments)
    # All is said: another Ctrl-C need not wait for the interpreter to tidy up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if exit_code == Interrupted.exit_code:
        _leave_at_once(exit_code)
    sys.exit(exit_code)


def _leave_at_once(exit_code: int) -> NoReturn:
    """End without waiting for what is still at work on other threads: a runtime's import may
    take ten seconds more, and complains of an interpreter that is half gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, with every error told in two lines."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal that lacks a character shows "?", not a crash
            reconfigure(errors="replace")
    # Pillow's remarks on odd metadata are for programmers; what matters is an error of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        outcome = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="edgevlm",
            standalone_mode=False,
            color=False if _plain_terminal() else None,
        )
        # What is still unwritten must fail here, where it can be told.
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except EdgeVLMError as error:
        tell(error, error.message, error.hint)
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # click makes the first into the second
        # The reader has left (`| head`): nothing more to say, and no second error at exit.
        _write_to_nowhere()
        return 0
    except Exception as error:
        if isinstance(error, OSError) and _is_full(error):
            _write_to_nowhere()
            tell(error, "There is no room on the disk that the output goes to.", "Free some space.")
            return NoSpace.exit_code
        what = f"Unexpected {type(error).__name__}: {error}"
        tell(error, what, "This is a bug: EDGEVLM_DEBUG=1 shows where.")
        return EdgeVLMError.exit_code


def _open_missing_streams() -> None:
    """Cron, `<&-` and windowless programs start a process without them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _plain_terminal() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _is_full(error: OSError) -> bool:
    from edgevlm.models.disk import FULL

    return error.errno in FULL


def _write_to_nowhere() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(error: Exception, what: str, hint: str | None) -> None:
    """Say what happened and what to do next, a line each; with EDGEVLM_DEBUG=1, where."""
    if os.environ.get("EDGEVLM_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    click.echo(f"error: {' '.join(what.split())}", err=True)
    if hint:
        click.echo(f"hint: {' '.join(hint.split())}", err=True)
