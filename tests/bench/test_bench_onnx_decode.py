"""The benchmark runs, and its bare loops and ours choose the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx_decode
import pytest

from edgevlm.models.onnx_export import export_onnx


@pytest.mark.parametrize("attention", ["plain", "gqa"])
def test_all_loops_choose_the_same_tokens(
    smolvlm_source: Path,
    tmp_path: Path,
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_onnx(smolvlm_source, tmp_path, attention=attention)  # type: ignore[arg-type]
    arguments = ["--model", str(tmp_path), "--prompt", "20", "--steps", "12", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["onnx_decode.py", *arguments, "--json"])
    onnx_decode.main()
    result = json.loads(capsys.readouterr().out)
    assert result["same_tokens"]
    assert set(result["ratios"]) == {"prefill", "decode"}
    monkeypatch.setattr(sys, "argv", ["onnx_decode.py", *arguments])
    onnx_decode.main()
    assert "all loops chose the same tokens" in capsys.readouterr().out
