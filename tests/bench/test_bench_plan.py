"""The two benchmarks of plans run, and their arithmetic is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import auto_choice
import plan_accuracy
import pytest
from auto_choice import Speed, crossover, summarize
from full_size import convert, make_source


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small model for both runtimes."""
    folder = tmp_path_factory.mktemp("models") / "256m"
    make_source(folder / "source", "256m", small=True)
    for runtime, name in (("onnx", "onnx"), ("llamacpp", "gguf")):
        convert(folder / "source", folder / name, runtime)
    return folder.parent


def test_accuracy_compares_memory_and_speed(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models", "256m", "--keep", str(models), "--small", "--context", "256"]
    monkeypatch.setattr(sys, "argv", ["plan_accuracy.py", *arguments, "--rounds", "1", "--json"])
    plan_accuracy.main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["placement"] for row in rows] == ["onnx", "llamacpp"]
    for row in rows:
        for key in ("memory", "first_s", "tokens_per_s"):
            assert row["predicted"][key] > 0
            assert row["measured"][key] > 0
    plan_accuracy.print_table(rows)
    assert "llamacpp" in capsys.readouterr().out


def test_auto_choice_measures_both_and_says_which(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--onnx", str(models / "256m/onnx"), "--llamacpp", str(models / "256m/gguf")]
    small = ["--prompt", "60", "--new", "4", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["auto_choice.py", *folders, *small])
    auto_choice.main()
    out = capsys.readouterr().out
    assert "auto takes" in out
    assert "prompt of  300" in out


def test_where_two_runtimes_cross_over() -> None:
    speeds = {"onnx": Speed(0.0, 0.001, 0.010), "llamacpp": Speed(0.0, 0.002, 0.005)}
    # 300 prompt tokens put llama.cpp 0.3 s behind, 60 new ones bring it 0.3 s.
    assert crossover(speeds, 300) == {"runtime": "llamacpp", "from_new_tokens": 60}
    assert summarize(speeds, 300, 120)["faster"] == "llamacpp"
    assert summarize(speeds, 300, 10)["faster"] == "onnx"
    same = {"onnx": Speed(0.0, 0.001, 0.005), "llamacpp": Speed(0.0, 0.002, 0.005)}
    assert crossover(same, 300)["from_new_tokens"] is None
