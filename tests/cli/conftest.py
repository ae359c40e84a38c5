"""The command line as tests call it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgevlm.cli import run


@pytest.fixture
def edgevlm(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; return (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call
