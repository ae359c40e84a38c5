"""Reading of the reference's processors is shared with the families' tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "families"))
