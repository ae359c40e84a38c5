"""What tests of training share: three conversations to learn, pictures, and listeners."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.progress import Silent

QUESTION = "What is in the picture?"
TAUGHT: list[dict[str, Any]] = [
    {"image": "one.png", "question": QUESTION, "answer": "A red bus."},
    {"image": "two.png", "question": QUESTION, "answer": "A black cat."},
    {
        "messages": [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "A small model."},
            {"role": "user", "content": "And who am I?"},
            {"role": "assistant", "content": "12 people."},
        ]
    },
]


class Noting(Silent):
    """Keeps the lines, and calls `when` with each."""

    def __init__(self, when: Callable[[str], None] = lambda line: None) -> None:
        self.lines: list[str] = []
        self._when = when

    def note(self, text: str) -> None:
        self.lines.append(text)
        self._when(text)


def ctrl_c(at: str) -> Noting:
    """Interrupts whoever notes a line that begins so."""
    return Noting(lambda line: signal.raise_signal(signal.SIGINT) if line.startswith(at) else None)


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def write_lines(path: Path, lines: list[Any]) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()
