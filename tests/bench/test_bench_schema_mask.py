"""The benchmark runs and tells what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import schema_mask
from smolvlm_factory import make_processor_files


def test_it_tells_what_a_mask_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_processor_files(tmp_path / "model")
    arguments = ["schema_mask.py", "--model", str(folder), "--answers", "2", "--tokens", "20"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    schema_mask.main()
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"n_vocab", "vocabulary_ms", "schema_ms", "token_ms", "token_p99_ms"}
    assert all(value > 0 for value in result.values())
    monkeypatch.setattr(sys, "argv", arguments)
    schema_mask.main()
    assert "each token" in capsys.readouterr().out
