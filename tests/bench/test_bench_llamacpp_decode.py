"""The benchmark runs, and its bare loop and ours choose the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llamacpp_decode
import pytest
from gguf_factory import make_gguf


def test_both_loops_choose_the_same_tokens(
    smolvlm_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoder = make_gguf(smolvlm_source, tmp_path).decoder
    arguments = ["--model", str(decoder), "--prompt", "20", "--steps", "12", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["llamacpp_decode.py", *arguments, "--json"])
    llamacpp_decode.main()
    result = json.loads(capsys.readouterr().out)
    assert result["same_tokens"]
    assert set(result["ratios"]) == {"prefill", "decode"}
    if sys.platform == "linux":
        assert result["memory"]["ratio"] > 0
    monkeypatch.setattr(sys, "argv", ["llamacpp_decode.py", *arguments])
    llamacpp_decode.main()
    assert "both loops chose the same tokens" in capsys.readouterr().out
