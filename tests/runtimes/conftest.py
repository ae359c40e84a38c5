"""Models of one set of random weights in the files of each runtime.

Reading of the reference's processors is shared with the families' tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "families"))


@pytest.fixture(scope="session")
def smolvlm_gguf(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random-weight SmolVLM of `smolvlm_source` as a GGUF pair, fp32."""
    from gguf_factory import make_gguf

    folder = tmp_path_factory.mktemp("smolvlm-gguf")
    make_gguf(smolvlm_source, folder)
    return folder
