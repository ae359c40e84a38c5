"""A photograph that the built-in model knows, and how one tells."""

from __future__ import annotations

from pathlib import Path

PHOTO = Path(__file__).parent.parent / "examples" / "photo.jpg"
# A cup of coffee; ImageNet's own name for it is espresso.
NAMES = ("coffee", "espresso")


def names_it(text: str) -> bool:
    return any(name in text.lower() for name in NAMES)
