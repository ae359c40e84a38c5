"""`edgevlm adapter train`: what is learned is said by a session, and no stop costs a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from gguf_factory import make_gguf
from numpy.typing import NDArray
from PIL import Image
from smolvlm_factory import Dims, make_random_model

from edgevlm import Model, Session, load_model, load_settings
from edgevlm.adapters.base import describe_base
from edgevlm.adapters.manifest import DeclaredBase, manifest_of
from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.store import AdapterStore
from edgevlm.adapters.training.data import read_examples
from edgevlm.adapters.training.decoder import load_decoder
from edgevlm.adapters.training.job import train
from edgevlm.adapters.training.recipe import Recipe, make_recipe
from edgevlm.adapters.training.report import Report
from edgevlm.adapters.training.samples import Rows, Sample, split
from edgevlm.cli import run
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import Interrupted, NotSupported, UnreadableMedia, UsageError
from edgevlm.families.base import Turn
from edgevlm.media import load_image
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.progress import Silent
from edgevlm.models.store import Store
from edgevlm.runtimes.llamacpp_lora import LoraGguf, interleave
from edgevlm.settings import Settings

QUESTION = "What is in the picture?"
TAUGHT: list[dict[str, Any]] = [
    {"image": "one.png", "question": QUESTION, "answer": "A red bus."},
    {"image": "two.png", "question": QUESTION, "answer": "A black cat."},
    {
        "messages": [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "A small model."},
            {"role": "user", "content": "And who am I?"},
            {"role": "assistant", "content": "12 people."},
        ]
    },
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model for llama.cpp, with an adapter of its own as edgevlm-tiny has."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "base"))
    dims = Dims()
    make_random_model(source, dims=dims, split=False)
    make_gguf(source, folder)
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(0, 0.1, size).astype(np.float32) for size in ((4, dims.hidden), (dims.hidden, 4))
    )
    name = "blk.1.attn_q.weight"
    rows = interleave(b, dims.hidden // dims.heads)
    LoraGguf("llama", {f"{name}.lora_a": a, f"{name}.lora_b": rows}).write(folder / "lora.gguf")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`taught.jsonl`, three conversations, and its pictures."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("one.png", "two.png")):
        Image.fromarray(pixels(seed)).save(folder / name)
    return write_lines(folder / "taught.jsonl", TAUGHT)


@pytest.fixture
def recipe(base: Path, data: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        data, "mine", tmp_path / "mine", str(base), lr=5e-3, eval_share=0, steps=6, threads=1
    )


class Noting(Silent):
    """Keeps the lines, and calls `when` with each."""

    def __init__(self, when: Callable[[str], None] = lambda line: None) -> None:
        self.lines: list[str] = []
        self._when = when

    def note(self, text: str) -> None:
        self.lines.append(text)
        self._when(text)


def ctrl_c(at: str) -> Noting:
    """Interrupts whoever notes a line that begins so."""
    return Noting(lambda line: signal.raise_signal(signal.SIGINT) if line.startswith(at) else None)


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def write_lines(path: Path, lines: list[Any]) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


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


def test_the_graph_that_is_trained_is_the_one_that_is_deployed(
    recipe: Recipe, base: Path, data: Path, home: Path
) -> None:
    """Its loss, without an adapter, is that of the logits which llama.cpp gives."""
    lines = [TAUGHT[0], {**TAUGHT[2], "images": ["two.png"]}]
    recipe = replace(recipe, data=write_lines(data.parent / "judged.jsonl", lines), steps=1)
    report = train(replace(recipe, eval_share=0.5), Settings(home=home))
    with load_model(str(base), runtime="llamacpp") as model:
        losses = [loss_of(model, line, data.parent) for line in lines]
    assert (report.examples, report.held_out) == (1, 1)
    assert report.base_eval_loss in [pytest.approx(loss, abs=1e-3) for loss in losses]


def loss_of(model: Model, line: dict[str, Any], folder: Path) -> float:
    """Nats for each token of the answers, by the runtime's own logits."""
    said = line.get("messages") or [
        {"role": "user", "content": line["question"]},
        {"role": "assistant", "content": line["answer"]},
    ]
    shown = [line["image"]] if "image" in line else line["images"]
    turns: list[Turn] = []
    nats: list[float] = []
    for message in said:
        if message["role"] == "user":
            paths = () if turns else shown
            images = [model.family.preprocess(load_image(folder / path)) for path in paths]
            turns.append(Turn("user", (*images, message["content"])))
            continue
        prompt = model.family.render(turns)
        context = model.language.new_context()
        parts: list[Any] = []
        for part in prompt.parts:
            if isinstance(part, tuple):
                parts.append(np.array(part))
            else:
                rows = model.embed(prompt.images[part.image], Cancel())
                parts.append(rows[part.start : part.start + part.count])
        logits = context.extend(parts, Cancel())
        answer = model.family.tokenizer.encode(" " + message["content"]).ids
        answer.append(model.family.tokenizer.token_to_id("<end_of_utterance>"))
        for token in answer:
            nats.append(float(np.log(np.exp(logits - logits.max()).sum()) + logits.max()))
            nats[-1] -= float(logits[token])
            logits = context.extend([np.array([token])], Cancel())
        context.close()
        turns.append(Turn("assistant", (message["content"],)))
    return float(np.mean(nats))


def test_a_decoder_of_mixed_types_is_dequantised(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "gguf"
    make_random_model(source, dims=Dims(layers=1, hidden=256, intermediate=256))
    export = make_gguf(source, folder, quantize="q4_k_m")
    assert {"Q4_K", "Q6_K", "F32"} <= set(export.decoder_types)
    decoder = load_decoder(ModelFiles("small", folder, {"decoder": export.decoder}))
    checkpoint = Checkpoint(source)
    for name, weight in decoder.model.named_parameters():
        tensor = f"model.text_model.{name}"
        expected = checkpoint.read(tensor, tuple(weight.shape))
        assert np.abs(weight.numpy() - expected).mean() < 0.1 * np.abs(expected).mean(), name


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


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "is not JSON"),
        ("[]", "is no object"),
        ("\xff", "is not JSON"),
        ({"image": "no.png", "answer": "a"}, "shows 'no.png', and there is no such file"),
        ({"image": "https://x.org/a.png", "answer": "a"}, "and there is no such file"),
        ({"image": 3, "answer": "a"}, "has images that are no list of paths"),
        ({"answer": "a"}, "asks nothing"),
        ({"question": "q"}, "has no text as 'answer'"),
        ({"question": "q", "answer": " "}, "has no text as 'answer'"),
        ({"question": "q", "answer": "a", "label": 1}, "has the unknown 'label'"),
        ({"messages": {}}, "has no list of messages"),
        ({"messages": []}, "must take turns"),
        ({"messages": ["hi"]}, "has a message that is no object"),
        ({"messages": [{"role": "user", "content": "q"}]}, "must take turns"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "a message of the role 'tool'"),
        ({"messages": [{"role": "assistant", "content": "q"}]}, "must take turns"),
        ({"messages": [{"role": "user", "content": ["q"]}]}, "has no text as 'content'"),
        (
            {"messages": [{"role": "assistant", "content": "a", "images": ["one.png"]}]},
            "has images in a message of the assistant",
        ),
    ],
)
def test_a_bad_line_is_named_before_anything_begins(
    recipe: Recipe, data: Path, line: Any, wrong: str
) -> None:
    path = data.parent / "bad.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(json.dumps(TAUGHT[0]).encode() + b"\n\n" + text.encode("latin-1") + b"\n")
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 3, ") as refused:
        train(replace(recipe, data=path), load_settings())
    assert wrong in refused.value.message


def test_a_picture_that_is_none_is_named_with_its_line(recipe: Recipe, data: Path) -> None:
    (data.parent / "text.png").write_text("no picture")
    lines = [TAUGHT[0], {"image": "text.png", "answer": "a"}]
    bad = write_lines(data.parent / "unseen.jsonl", lines)
    with pytest.raises(UnreadableMedia, match=r"unseen\.jsonl, line 2: "):
        train(replace(recipe, data=bad), load_settings())


def test_pictures_belong_to_the_first_question_unless_a_question_has_its_own(
    data: Path,
) -> None:
    turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages[2]["images"] = ["two.png"]
    path = write_lines(
        data.parent / "several.jsonl", [{"messages": messages, "images": ["one.png"]}]
    )
    (example,) = read_examples(path, system="Be short.")
    assert [said.role for said in example.said][:2] == ["system", "user"]
    shown = [[image.name for image in said.images] for said in example.said]
    assert shown == [[], ["one.png"], [], ["two.png"], []]


def test_a_folder_of_captions_is_asked_the_usual_question(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels(1)).save(tmp_path / "in" / "a.png")
    with pytest.raises(UsageError, match=r"a\.png has no caption a\.txt beside it"):
        read_examples(tmp_path)
    (tmp_path / "in" / "a.txt").write_text(" A cat.\n")
    (example,) = read_examples(tmp_path)
    assert [said.text for said in example.said] == ["Describe this image.", "A cat."]
    assert example.said[0].images == (tmp_path / "in" / "a.png",)


def test_no_picture_is_on_both_sides_of_the_split() -> None:
    def sample(*pictures: int) -> list[Sample]:
        rows = tuple(Rows(0, str(picture), 0, 1) for picture in pictures)
        return [Sample(np.array([1], np.int32), np.array([True]), rows)]

    # Pictures 3 i to 3 i + 2 are tied by the conversation that shows two of them, twice over.
    samples = [sample(3 * i + j, 3 * i + (j + 1) % 3) for i in range(20) for j in range(3)]
    samples += [sample() for _ in range(40)]
    learn, judge = split(samples, 0.2, seed=1)
    assert (len(learn), len(judge)) == (80, 20)
    sides = [{key for s in side for key in s.pictures} for side in (learn, judge)]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert [s.rows for s in split(samples, 0.2, seed=2)[1]] != [s.rows for s in judge]
    assert split(samples[:1], 0.5, seed=0)[1] == []


def test_a_train_toml_says_what_the_options_do_not(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        'data = "talks.jsonl"\nname = "mine"\nout = "."\nlr = 1\neval-share = 0.2\n'
        'notice = "Not a diagnosis."\n'
    )
    recipe = make_recipe({"rank": 4, "lr": 0.001, "steps": None}, config)
    assert (recipe.data, recipe.out) == (tmp_path / "talks.jsonl", tmp_path)
    assert (recipe.rank, recipe.lr, recipe.eval_share, recipe.steps) == (4, 0.001, 0.2, None)
    assert recipe.notice == "Not a diagnosis."
    assert "notice" not in recipe.decisive()
    for line, wrong in (
        ("ranks = 4", "unknown 'ranks'"),
        ("rank = 4.5", "no int"),
        ("steps = 'a'", "no int"),
        ("rank", "can't be read"),
    ):
        config.write_text(f"{line}\n")
        with pytest.raises(UsageError, match=wrong):
            make_recipe({}, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "My Adapter"),
        ("rank", 0),
        ("alpha", float("nan")),
        ("targets", "mlp"),
        ("lr", 0.0),
        ("eval_share", 0.9),
        ("steps", 0),
        ("device", "tpu"),
        ("version", "1"),
        ("title", "a\x1b[31m"),
        ("license", "l" * 121),
        ("notice", "Not a\ndiagnosis."),
        ("notice", "n" * 201),
    ],
)
def test_what_can_not_be_is_refused(recipe: Recipe, field: str, value: Any) -> None:
    with pytest.raises(UsageError):
        replace(recipe, **{field: value})


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
