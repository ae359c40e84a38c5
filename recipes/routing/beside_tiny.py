"""Importing this lets the recipes here import those of edgevlm-tiny, by file name as they do."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tiny"))
