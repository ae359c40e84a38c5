"""The benchmark runs, and every answer is its sequential twin's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import serve
from lora_factory import write_peft


def test_it_measures(
    smolvlm_everywhere: Path,
    smolvlm_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapters = [str(write_peft(tmp_path / name, smolvlm_source)) for name in ("one", "two")]
    model = ["--model", str(smolvlm_everywhere), "--runtime", "onnx+llamacpp"]
    sizes = ["--rounds", "1", "--tokens", "4", "--words", "1000", "--after", "0"]
    arguments = ["serve.py", *model, *sizes, "--adapters", *adapters]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    serve.main()
    rows = json.loads(capsys.readouterr().out)
    parts = [row["part"] for row in rows]
    assert parts == ["one", "many", "peer", "peer", "adapters", "adapters", "gone"]
    assert all(value > 0 for row in rows for value in row.values() if isinstance(value, float))
    many = rows[1]
    assert many["requests answered"] == 24
    assert many["with the tokens of their sequential twins"] == 24
    monkeypatch.setattr(sys, "argv", [*arguments, "--parts", "gone"])
    serve.main()
    assert "engine free after, ms" in capsys.readouterr().out
