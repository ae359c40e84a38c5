from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgevlm.cli import run

sys.path.append(str(Path(__file__).parents[1] / "routing"))
from judged import judged, write


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write(tmp_path / "answers.jsonl", judged(1200))


def test_a_confidence_is_made_certified_shown_and_measured(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "calibrate", "--data", str(answers), "--risk", "0.25"]) == 0
    assert "at most 25.0% wrong of the surest" in capsys.readouterr().out

    assert run(["route", "status", "--json"]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)["calibrations"]
    assert (row["model"], row["origin"]) == ("a-model", "here")
    assert row["certificates"][0]["risk"] == 0.25
    assert row["data"]["answers"] == 1200
    assert run(["route", "status"]) == 0
    assert "a-model edition 2" in capsys.readouterr().out

    others = write(tmp_path / "others.jsonl", judged(400, seed=9))
    out = tmp_path / "figures"
    command = ["route", "eval", "--data", str(others), "--out", str(out)]
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["methods"]["confidence"]["auroc"][0] > 0.65
    assert set(document["methods"]) >= {"mean logprob", "entropy", "random", "oracle"}
    assert json.loads((out / "curves.json").read_text()) == document
    with Image.open(out / "curves.png") as png:
        colours = png.convert("RGB").getcolors(1 << 20)
    assert len(colours) > 20
    assert run(command[:4]) == 0
    assert "400 answers" in capsys.readouterr().out


def test_a_refused_certificate_is_an_error_that_says_what_is_missing(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "calibrate", "--data", str(answers), "--risk", "0.25"]) == 0
    few = write(tmp_path / "few.jsonl", judged(60, seed=3))
    capsys.readouterr()
    assert run(["route", "calibrate", "--data", str(few), "--risk", "0.1"]) == 2
    told = capsys.readouterr().err
    assert "No certificate" in told
    assert "missing" in told or "can't be had" in told
    # The one of before is still in force.
    assert run(["route", "status", "--json"]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)["calibrations"]
    assert row["certificates"][0]["risk"] == 0.25


def test_a_model_without_a_confidence_can_not_be_measured(
    answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "eval", "--data", str(answers)]) == 2
    assert "has no confidence" in capsys.readouterr().err
