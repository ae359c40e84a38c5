"""`edgevlm model convert` as a person meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgevlm.cli import run
from edgevlm.models.convert import recipe
from edgevlm.models.convert import source as convert_source


@pytest.fixture
def source(smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(smolvlm_source, tmp_path / "small"))


def test_says_what_it_made_what_it_cost_and_what_to_try(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "convert", "small", "--runtime", "onnx", "--bits", "16"]) == 0
    out, err = capsys.readouterr()
    first, widths, figures, hint = out.splitlines()
    assert first.startswith("small is here for onnx: ")
    assert first.endswith(" in ./small-onnx")
    assert widths == "  decoder 16 bits, vision encoder 16 bits"
    assert "KL divergence" in figures
    assert hint == "  try it: edgevlm chat --model ./small-onnx"
    assert "Writing decoder_model_merged_fp16.onnx" in err
    assert run(["chat", "What is this?", "--model", "./small-onnx", "--max-tokens", "3"]) == 0


def test_json_is_the_report_and_a_poor_result_is_warned_of(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "convert", "small", "--runtime", "onnx", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads((source.parent / "small-onnx" / "conversion.json").read_text())
    # Random weights stand four bits badly.
    assert report["check"]["top1_agreement"] < 0.9
    assert "try --bits 8." in err  # and nothing of --quantize, which is llama.cpp's


def test_a_folder_without_weights_says_which_to_take(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "model.safetensors").unlink()
    assert run(["model", "convert", "small", "--runtime", "onnx"]) == 3
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.endswith("has no safetensors weights.")
    assert hint.startswith("hint: Convert the folder")


def test_weights_that_one_may_not_read_are_no_bug(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> None:  # whoever runs the tests may be root, who may all
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(convert_source, "SafetensorsFile", forbidden)
    assert run(["model", "convert", "small", "--runtime", "onnx"]) == 3
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: You may not read ")
    assert "permissions" in hint


def test_what_is_missing_is_listed_with_the_command_that_adds_it(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    assert run(["model", "convert", "small", "--runtime", "llamacpp"]) == 4
    error, hint = capsys.readouterr().err.splitlines()
    assert error.endswith("not installed here: onnx, gguf, llama_cpp.")
    assert hint == "hint: Run: pip install 'edgevlm[convert,llamacpp]'"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["small"], 2, "--runtime"),
        (["small", "--runtime", "onnx", "--bits", "3"], 2, "4, 8, 16"),
        (["small", "--runtime", "llamacpp", "--quantize", "q9"], 2, "q4_k_m"),
        (["nothing", "--runtime", "onnx"], 3, "no model"),
        (["small", "--runtime", "onnx", "--output", "x" * 300], 3, "Can't write to"),
        (["edgevlm-tiny", "--runtime", "onnx"], 4, "put together"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_a_code(
    source: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    assert run(["model", "convert", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
