"""The benchmark runs, and swaps leave nothing behind that a few of them would show."""

from __future__ import annotations

import json
import sys

import pytest
import vision_swap


def test_it_measures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vision_swap.py", "--swaps", "8", "--json"])
    vision_swap.main()
    result = json.loads(capsys.readouterr().out)
    assert result["swaps"] == 8
    assert result["memory after the swaps / before"] < 1.2
    assert min(
        result[f"picture, {way} ms"] for way in ("swapped to an adapter", "back on the base")
    )
