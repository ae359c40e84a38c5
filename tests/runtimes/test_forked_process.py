"""A fork leaves the threads of a runtime behind: the child is told so, and doesn't wait."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ASK_AFTER_A_FORK = """
import os, sys
import numpy as np
from edgevlm import Session
from edgevlm.errors import RuntimeFailed
from edgevlm.model import load_model

with load_model(sys.argv[1], runtime=sys.argv[2]) as model, Session(model) as session:
    session.ask("What?", max_tokens=1)
    child = os.fork()
    if child == 0:
        picture = np.zeros((64, 64, 3), np.uint8)
        for ask in (
            lambda: session.ask("And now?", max_tokens=1),
            lambda: session.ask("And here?", images=[picture], max_tokens=1),
            lambda: Session(model).ask("And now?", max_tokens=1),
        ):
            try:
                ask()
            except RuntimeFailed as error:
                print(error, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    session.ask("And here?", max_tokens=1)
"""


@pytest.mark.parametrize("runtime", ["llamacpp", "mlx"])
def test_a_fork_is_refused(smolvlm_gguf: Path, smolvlm_source: Path, runtime: str) -> None:
    folder = smolvlm_gguf if runtime == "llamacpp" else smolvlm_source
    done = subprocess.run(
        [sys.executable, "-c", _ASK_AFTER_A_FORK, str(folder), runtime],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("does not outlive a fork") == 3
