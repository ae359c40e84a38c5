"""The top of the command line: help, errors as two lines, exit codes."""

from __future__ import annotations

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


def test_exit_codes_of_the_error_tree() -> None:
    def every(kind: type[EdgeVLMError]) -> list[type[EdgeVLMError]]:
        return [kind, *(k for child in kind.__subclasses__() for k in every(child))]

    import edgevlm.errors as errors

    tree = {kind.__name__: kind.exit_code for kind in every(EdgeVLMError)}
    documented = errors.__doc__ or ""
    assert all(name in documented for name in tree)
    assert set(tree.values()) == {1, 2, 3, 4, 5, 130}
    assert command_line.run.__doc__
