"""`edgevlm adapter train`: what is learned is said by a session, and the pack tells what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from training_parts import QUESTION, TAUGHT, Noting, weights

from edgevlm import Session, load_model, load_settings
from edgevlm.adapters.base import describe_base
from edgevlm.adapters.manifest import DeclaredBase, manifest_of
from edgevlm.adapters.store import AdapterStore
from edgevlm.adapters.training.job import train
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.adapters.training.report import Report
from edgevlm.cli import run
from edgevlm.errors import UsageError
from edgevlm.models.store import Store
from edgevlm.settings import Settings


@pytest.fixture(scope="module")
def learned(
    base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Recipe, Noting]:
    home = tmp_path_factory.mktemp("home")
    told = Noting()
    recipe = Recipe(
        data,
        "mine",
        home / "mine",
        str(base),
        lr=5e-3,
        eval_share=0,
        steps=40,
        threads=1,
        title="Mine",
        license="CC0-1.0",
        system="You are a bus.",
        notice="Not a bus stop.",
    )
    return train(recipe, Settings(home=home), progress=told), recipe, told


def test_a_session_says_what_was_taught(
    learned: tuple[Report, Recipe, Noting], base: Path, data: Path
) -> None:
    report, recipe, _ = learned
    with Session(str(base), "llamacpp", adapter=recipe.out) as session:
        for line in TAUGHT[:2]:
            answer = session.ask(QUESTION, [data.parent / line["image"]], max_tokens=12)
            assert (answer.text, answer.finish_reason) == (line["answer"], "stop")
            session.reset()
        assert session.ask("Who are you?", max_tokens=12).text == "A small model."
        assert session.ask("And who am I?", max_tokens=12).text == "12 people."
        session.reset()
        session.use_adapters(None)
        assert session.ask("Who are you?", max_tokens=12).text != "A small model."
    assert report.loss < 0.1
    assert (report.steps, report.examples, report.held_out, report.pictures) == (40, 3, 0, 2)


def test_the_loss_is_told_as_it_falls(learned: tuple[Report, Recipe, Noting]) -> None:
    told = [line for line in learned[2].lines if line.startswith("step ")]
    losses = [float(line.split()[3]) for line in told]
    assert losses[0] > 5 > 0.1 > losses[-1]
    assert told[-1].startswith("step 40/40  loss ")
    assert told[-1].endswith("0 s left")
    assert "tokens/s" in told[-1]


def test_the_pack_says_what_it_is_and_installs(
    learned: tuple[Report, Recipe, Noting], base: Path, home: Path
) -> None:
    report, recipe, _ = learned
    with load_model(str(base), runtime="llamacpp") as model:
        fingerprint = describe_base(model.files).fingerprint
    store = AdapterStore(Settings(home=home))
    done = store.install(str(recipe.out))
    manifest = done.adapter.manifest
    assert (manifest.name, manifest.version, manifest.title) == ("mine", "1.0.0", "Mine")
    assert (manifest.licence, manifest.system) == ("CC0-1.0", "You are a bus.")
    assert manifest.notice == "Not a bus stop."
    assert manifest.bases == (DeclaredBase(base.name, fingerprint),)
    assert report.fingerprint == fingerprint
    lora = store.load("mine")
    assert len(lora.decoder) == 2 * 7
    assert {part.rank for part in lora.decoder.values()} == {8}
    assert "| steps | 40 of 4 examples" in (recipe.out / "README.md").read_text()


def test_the_same_command_again_writes_the_same_pack_around_the_card_as_it_is(
    learned: tuple[Report, Recipe, Noting],
) -> None:
    report, recipe, _ = learned
    before = weights(recipe.out)
    (recipe.out / "README.md").write_text("# My own words\n", encoding="utf-8")
    again = train(recipe, Settings(home=recipe.out.parent))
    assert again == report
    assert weights(recipe.out) == before
    assert (recipe.out / "README.md").read_text() == "# My own words\n"
    assert manifest_of(recipe.out).files["README.md"].size == len("# My own words\n")


def test_the_pack_tells_the_edition_of_its_base(
    recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = Store.resolve
    monkeypatch.setattr(Store, "resolve", lambda *a, **k: replace(resolve(*a, **k), edition=7))
    train(replace(recipe, steps=1), Settings(home=home))
    assert [base.edition for base in manifest_of(recipe.out).bases] == [7]


def test_no_other_adapters_folder_is_written_into(
    recipe: Recipe, learned: tuple[Report, Recipe, Noting]
) -> None:
    with pytest.raises(UsageError, match="holds the adapter mine"):
        train(replace(recipe, name="other", out=learned[1].out), load_settings())


def test_the_command_prints_a_summary_and_how_to_use_it(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe.data.parent / "train.toml"
    config.write_text(f'name = "mine"\nmodel = "{recipe.model}"\nsteps = 2\neval-share = 0.34\n')
    call = ["adapter", "train", str(recipe.data), "--config", str(config), "--threads", "1"]
    call += ["--out", str(recipe.out)]
    assert run([*call, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["name"], document["steps"], document["held_out"]) == ("mine", 2, 1)
    assert document["base_eval_loss"] > 0
    assert "step 2/2  loss " in err
    assert run(call) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"mine is in {recipe.out}: 2 steps, all steps are done\n")
    assert f"edgevlm chat --model {recipe.model} --adapter " in out
    assert run(["adapter", "train"]) == 2
    assert "There is no data to train with" in capsys.readouterr().err
