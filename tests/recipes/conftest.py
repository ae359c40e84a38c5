"""The recipes are scripts that import each other by file name, as when they are run."""

from __future__ import annotations

import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"

sys.path += [str(RECIPES / name) for name in ("tiny", "adapters", "routing")]
