"""What MLX brings says nothing of its own accord on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys


def said(program: str) -> str:
    """By a process of its own, where PyTorch is not installed, as it is not with the extra."""
    program = f"import sys; sys.modules['torch'] = None; {program}"
    # What another test's import of MLX has asked of transformers is not inherited.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stderr


def test_nobody_is_told_to_install_pytorch() -> None:
    assert "PyTorch was not found" in said("import transformers")
    assert said("import edgevlm.runtimes.mlx_thread, transformers") == ""
    assert said("import edgevlm.runtimes.mlx_decoder, mlx_vlm.utils") == ""
