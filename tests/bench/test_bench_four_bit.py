"""The benchmark runs, and its figures say what they should of graphs that round less."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import four_bit
import pytest


def test_what_rounds_less_is_nearer(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--gguf", str(smollm2_gguf), "--tokens", "60", "--rounds", "1"]
    arguments += ["--prompt", "8", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["four_bit.py", *arguments, "--json"])
    four_bit.main()
    rounded, exact, all_exact = json.loads(capsys.readouterr().out).values()
    assert rounded["kl_divergence"] > 10 * exact["kl_divergence"] > 0
    assert exact["kl_divergence"] > all_exact["kl_divergence"]
    assert exact["top1_agreement"] == all_exact["top1_agreement"] == 1
    assert all(row["decode_tps"] > 0 and row["prefill_tps"] > 0 for row in (rounded, exact))
