"""The top of the command line: help, errors as two lines, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from edgevlm import cli as command_line
from edgevlm.cli import COMMANDS, cli, run
from edgevlm.errors import EdgeVLMError, ModelUnavailable


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_the_list_of_model_commands_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    run(["model", "--help"])
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert "edgevlm" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["fly"], ["chat", "--wings"], ["chat", "a", "b"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: fail)


def test_an_error_is_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, ModelUnavailable("The hub\ndoes not answer.", hint="Try\nlater."))
    assert run(["x"]) == 3
    assert capsys.readouterr() == ("", "error: The hub does not answer.\nhint: Try later.\n")


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, ModelUnavailable("No."))
    monkeypatch.setenv("EDGEVLM_DEBUG", "1")
    run(["x"])
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(["x"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "EDGEVLM_DEBUG=1" in err


def test_interrupts_are_130(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    assert run(["x"]) == 130


def _started(
    *arguments: str, shell: str = 'exec "$0" "$@"', **options: Any
) -> subprocess.Popen[bytes]:
    program = "from edgevlm.cli import main; main()"
    command = ["sh", "-c", shell, sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, **options)


def test_an_interrupt_waits_for_no_thread() -> None:
    program = """
import threading, click
from edgevlm.cli import cli, main
@click.command()
def stuck():
    threading.Thread(target=threading.Event().wait).start()
    click.echo("said", nl=False)
    raise KeyboardInterrupt
cli.get_command = lambda ctx, name: stuck
main(["x"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b"said", b"")


@pytest.mark.parametrize("arguments", [["--help"], ["model", "list", "--json"], ["model", "list"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with _started(*arguments, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_may_be_missing(closed: int) -> None:
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    shell = f'exec "$0" "$@" {closed}>&-'
    with _started("chat", "Hi", "--image", "nowhere.png", shell=shell, **streams) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"nowhere.png" in err or closed == 2


def test_an_output_without_room_is_told(tmp_path: Path) -> None:
    shell = 'ulimit -f 0; exec "$0" "$@" >listing'
    process = _started("model", "list", shell=shell, cwd=tmp_path, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert err.startswith(b"error: There is no room")
    assert b"bug" not in err


@pytest.mark.parametrize("variable", ["NO_COLOR=1", "TERM=dumb"])
def test_no_colour_where_none_is_wanted(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool | None] = []

    @click.command()
    @click.pass_context
    def tell(ctx: click.Context) -> None:
        said.append(ctx.color)

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: tell)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    run(["x"])
    monkeypatch.setenv(*variable.split("="))
    run(["x"])
    assert said == [None, False]


def test_exit_codes_of_the_error_tree() -> None:
    def every(kind: type[EdgeVLMError]) -> list[type[EdgeVLMError]]:
        return [kind, *(k for child in kind.__subclasses__() for k in every(child))]

    import edgevlm.errors as errors

    tree = {kind.__name__: kind.exit_code for kind in every(EdgeVLMError)}
    documented = errors.__doc__ or ""
    assert all(name in documented for name in tree)
    assert set(tree.values()) == {1, 2, 3, 4, 5, 130}
    assert command_line.run.__doc__
