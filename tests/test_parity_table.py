"""The parity table holds in every cell; `python tests/parity.py` prints it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import parity
import pytest
from smollm2 import VARIANTS, SmolLM2

RUNTIMES = [entry.runtime for entry in parity.ENTRIES]
N_TOKENS = 80


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], parity.Cell]:
    found = parity.full_precision(RUNTIMES, tmp_path_factory.mktemp("parity"))
    return {(cell.runtime, cell.case): cell for cell in found}


@pytest.mark.parametrize("case", parity.CASES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_cell(cells: dict[tuple[str, str], parity.Cell], runtime: str, case: str) -> None:
    cell = cells[runtime, case]
    assert cell.same_tokens
    assert 0 < cell.deviation <= cell.tolerance


@pytest.fixture(scope="module")
def rows(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, parity.FourBit]:
    model = SmolLM2(smollm2_gguf, tmp_path_factory.mktemp("smollm2") / "variants")
    found = parity.four_bits(RUNTIMES, model, N_TOKENS, parity.QUESTIONS[:1])
    return {row.variant: row for row in found}


@pytest.mark.parametrize("variant", VARIANTS)
def test_four_bits_against_their_weights_dequantised(
    rows: dict[str, parity.FourBit], variant: str
) -> None:
    assert rows[variant].top1_agreement >= rows[variant].least


@pytest.mark.parametrize("variant", ["onnx", "llamacpp", "mlx"])
def test_one_grid_gives_one_answer(rows: dict[str, parity.FourBit], variant: str) -> None:
    assert rows[variant].same_answer == (parity.ANSWER,)


def test_the_command_prints_the_table_and_fails_with_a_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["parity.py", "--runtimes", "onnx", "--tokens", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    cell = parity.Cell("onnx", "fp32", "text", 1e-5, 1e-3, True)
    monkeypatch.setattr(parity, "full_precision", lambda *_: [cell])
    with pytest.raises(SystemExit) as ended:
        parity.main()
    assert ended.value.code == 0
    assert "1.0e-05 same ✓" in capsys.readouterr().out
    for wrong in (replace(cell, deviation=1.0), replace(cell, same_tokens=False)):
        monkeypatch.setattr(parity, "full_precision", lambda *_, wrong=wrong: [wrong])
        monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
        with pytest.raises(SystemExit) as ended:
            parity.main()
        assert ended.value.code == 1
        (told,) = json.loads(capsys.readouterr().out)["cells"]
        assert told["deviation"] == wrong.deviation


def test_tokens_in_common_end_where_they_part() -> None:
    assert parity._common([1, 2, 3], [1, 2, 3]) == 3
    assert parity._common([1, 2, 3], [1, 5, 3]) == 1
