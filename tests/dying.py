"""Processes that are killed at the n-th change that they make to the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


def die_at(limit: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook (`sys.addaudithook`) that kills its process before that change."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _CHANGES or (event == "open" and arguments[2] & os.O_CREAT):
            seen += 1
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def python(program: str, *arguments: str) -> str:
    """Run a program that may import this module; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
