"""The benchmark runs, and what it swaps costs what it should."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapter_swap
import pytest
from gguf_factory import make_gguf


def test_it_measures(
    smolvlm_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_gguf(smolvlm_source, tmp_path / "model")
    sizes = ["--prompt", "8", "--swaps", "10", "--steps", "3", "--threads", "1"]
    arguments = ["adapter_swap.py", "--model", str(tmp_path / "model"), *sizes]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    adapter_swap.main()
    result = json.loads(capsys.readouterr().out)
    assert result["adapter MB, float32"] == pytest.approx(0.065536)
    assert result["decode with / without"] > 0
    monkeypatch.setattr(sys, "argv", arguments)
    adapter_swap.main()
    assert "swap felt p95 ms" in capsys.readouterr().out
