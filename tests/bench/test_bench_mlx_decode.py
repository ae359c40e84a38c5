"""The benchmark runs, and mlx-vlm's loop and ours choose the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx_decode
import pytest


def test_both_loops_choose_the_same_tokens(
    smolvlm_source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--prompt", "20", "--steps", "12", "--rounds", "2"]
    arguments = ["mlx_decode.py", "--model", str(smolvlm_source), *sizes]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    mlx_decode.main()
    result = json.loads(capsys.readouterr().out)
    assert result["same_tokens"]
    assert set(result["ratios"]) == {"prefill", "decode"}
    monkeypatch.setattr(sys, "argv", arguments)
    mlx_decode.main()
    assert "both chose the same tokens" in capsys.readouterr().out
