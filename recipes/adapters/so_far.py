"""What measuring a pack keeps where it is stopped, and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def until_stopped(answers: Iterable[Answer]) -> list[Answer]:
    """All of them, or those that came before Ctrl-C."""
    said: list[Answer] = []
    try:
        said.extend(answers)
    except KeyboardInterrupt:
        print("Stopped; these are the figures so far.\n", file=sys.stderr)
    return said


def write_answers(path: Path, said: Iterable[Any]) -> None:
    """`said` are dataclasses."""
    path.write_text(json.dumps([asdict(answer) for answer in said], indent=1))
