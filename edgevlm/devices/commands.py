"""What the system's own tools say of it; nothing where one is missing, fails or hangs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import TypeAlias

Run: TypeAlias = Callable[[Sequence[str]], str]
_LONGEST_S = 5.0


def output(command: Sequence[str]) -> str:
    """The standard output of a command, "" where there is none to be had.

    Its exit status says little: sysctl fails where one of many keys is unknown.
    """
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LONGEST_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
