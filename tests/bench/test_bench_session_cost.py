"""The benchmark runs, in a process whose memory is its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import session_cost


def test_it_measures(
    smolvlm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["session_cost.py", "--model", str(smolvlm), "--pictures", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    session_cost.main()
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["memory after one picture MiB"] <= result["memory after 2 MiB"]
    assert result["first token ms, median"] > 0
    monkeypatch.setattr(sys, "argv", arguments)
    session_cost.main()
    assert "decode tok/s, median" in capsys.readouterr().out
