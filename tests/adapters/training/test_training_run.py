"""A run of training: stopped, killed and gone on with, ended early, or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from training_parts import Noting, ctrl_c, weights

from edgevlm import load_settings
from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.training.job import train
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.errors import Interrupted, NotSupported, UsageError
from edgevlm.settings import Settings


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm.adapters.training.loop._SAVE_S", 0)
    recipe = replace(recipe, eval_share=0.34, batch=1, patience=9)
    whole = train(recipe, Settings(home=tmp_path / "other"))
    expected = weights(recipe.out)
    shutil.rmtree(recipe.out)

    for at in ("The base", "step 2/6", "step 5/6"):
        with pytest.raises(Interrupted, match="Stopped at step") as stopped:
            train(recipe, Settings(home=home), progress=ctrl_c(at))
        assert stopped.value.hint is not None
        assert stopped.value.hint.startswith("The same command goes on from step ")
        assert not recipe.out.exists()
    told = Noting()
    report = train(recipe, Settings(home=home), progress=told)
    assert "Going on from step 4 ..." in told.lines
    assert weights(recipe.out) == expected
    assert replace(report, seconds=0) == replace(whole, seconds=0)


def test_a_killed_run_goes_on_and_its_pictures_stay_encoded(recipe: Recipe, home: Path) -> None:
    code = (
        "import sys; from edgevlm.adapters.training import loop; loop._SAVE_S = loop._NOTE_S = 0;"
        "from edgevlm.cli import main; main(sys.argv[1:])"
    )
    recipe = replace(recipe, steps=100_000)
    options = {"--name": "mine", "--out": recipe.out, "--model": recipe.model, "--lr": recipe.lr}
    options |= {"--eval-share": 0, "--steps": recipe.steps, "--threads": 1}
    given = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, "-c", code, "adapter", "train", str(recipe.data), *given]
    environment = {**os.environ, "EDGEVLM_HOME": str(home)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # The first line that is told of comes after that step's state.
        assert any(line.split()[1:2] == ["2/100000"] for line in process.stderr)
        process.kill()
    (work,) = (home / "training").glob("mine-*")
    state = json.loads((work / "state.json").read_text(encoding="utf-8"))
    assert (work / state["tensors"]).is_file()
    (pictures,) = (home / "training" / "pictures").iterdir()
    times = {path: path.stat().st_mtime_ns for path in pictures.glob("*.npy")}
    told = ctrl_c("Going on")
    with pytest.raises(Interrupted):
        train(recipe, load_settings(), progress=told)
    assert told.lines[-1].startswith("Going on from step ")
    assert {path: path.stat().st_mtime_ns for path in pictures.iterdir()} == times
    assert len(times) == 2


def test_other_settings_do_not_go_on_with_a_run_unless_it_begins_anew(
    recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm.adapters.training.loop._SAVE_S", 0)
    with pytest.raises(Interrupted):
        train(recipe, Settings(home=home), progress=ctrl_c("step 3"))
    other = replace(recipe, rank=4)
    with pytest.raises(UsageError, match="with other settings or data has come to step 2"):
        train(other, Settings(home=home))
    decoder = next(Path(recipe.model).glob("smolvlm*.gguf"))
    decoder.touch()  # as new weights of the same shapes are
    with pytest.raises(UsageError, match="with other settings or data"):
        train(recipe, Settings(home=home))
    train(other, Settings(home=home), restart=True)
    assert {part.rank for part in read_peft(recipe.out, name="m").decoder.values()} == {4}
    # What is finished is in the pack already, and in nobody's way.
    train(replace(recipe, targets="attention"), Settings(home=home))
    assert all("self_attn" in module for module in read_peft(recipe.out, name="m").decoder)


def test_it_stops_early_and_keeps_the_best(recipe: Recipe, home: Path) -> None:
    told = Noting()
    recipe = replace(recipe, eval_share=0.34, steps=80, lr=2e-2, patience=2)
    report = train(recipe, Settings(home=home), progress=told)
    assert report.ended == "2 evaluations in a row found nothing better"
    assert report.steps == report.best_step + 16 < 80
    found = [float(line.split()[5]) for line in told.lines if line.startswith("step")]
    assert report.eval_loss == pytest.approx(min(found), abs=1e-3)
    assert sum("(the best so far)" in line for line in told.lines) == len(found) - 2


def test_a_model_without_a_gguf_is_not_trained_on(
    recipe: Recipe, smolvlm: Path, home: Path
) -> None:
    with pytest.raises(NotSupported, match="there is no GGUF of its decoder"):
        train(replace(recipe, model=str(smolvlm)), Settings(home=home))


def test_a_loss_that_is_no_number_ends_the_run(recipe: Recipe, home: Path) -> None:
    train(recipe, Settings(home=home))
    for path in (home / "training" / "pictures").rglob("*.npy"):
        np.save(path, np.full_like(np.load(path), np.nan))
    with pytest.raises(UsageError, match="The loss is not a number any more at step 0"):
        train(recipe, Settings(home=home), restart=True)


def test_two_processes_do_not_train_one_adapter(recipe: Recipe, home: Path) -> None:
    train(recipe, Settings(home=home))
    (lock,) = (home / "training").glob("mine-*/lock")
    with FileLock(lock), pytest.raises(UsageError, match="Another process is training mine"):
        train(recipe, Settings(home=home))


def test_an_out_that_is_no_folder_is_told_before_anything_begins(recipe: Recipe) -> None:
    for out in (recipe.data, recipe.data / "mine"):
        with pytest.raises(UsageError, match="can't be written"):
            train(replace(recipe, out=out), load_settings())
