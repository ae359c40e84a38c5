"""Conversion with a small random model: what it makes, what it tells, and when it is stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from recorder import Recorder
from smolvlm_factory import load_reference

from edgevlm import Session, load_settings
from edgevlm.errors import ModelCorrupt, NoSpace, NotSupported, Offline, UnknownModel, UsageError
from edgevlm.families import load_family
from edgevlm.models import disk
from edgevlm.models.convert import Recipe, check, convert, job
from edgevlm.models.convert.measure import kl_divergence, top1_agreement
from edgevlm.models.convert.prompts import CONVERSATIONS, forced_prompts, synthetic_picture
from edgevlm.models.convert.source import find_source
from edgevlm.models.convert.workplace import Workplace, alone, restore
from edgevlm.models.onnx_export import export_onnx
from edgevlm.models.progress import Silent
from edgevlm.models.store import Store
from edgevlm.runtimes.coreml import CoreMLRuntime
from edgevlm.settings import Settings

ONNX = Recipe("onnx")
BASE = "HuggingFaceTB/SmolVLM-256M-Instruct"
RECIPES = {
    "onnx": Recipe("onnx"),
    "onnx at 16 bits": Recipe("onnx", 16),
    "onnx at 8 bits": Recipe("onnx", 8, 8),
    "llamacpp": Recipe("llamacpp", quantize="q4_k_m"),
    "llamacpp at 16 bits": Recipe("llamacpp", 16, quantize="f16"),
    "mlx": Recipe("mlx"),
    "mlx at 16 bits": Recipe("mlx", 16, 32),
}


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_the_result_talks_and_says_what_it_cost(
    smolvlm_source: Path, tmp_path: Path, name: str
) -> None:
    recipe = RECIPES[name]
    report = convert(str(smolvlm_source), recipe, output=tmp_path / "made")
    found = report.check
    assert found.reason is None
    assert found.n_tokens > 200
    assert found.kl_divergence is not None
    assert found.top1_agreement is not None
    assert found.kl_divergence < {4: 1, 8: 0.05, 16: 1e-3}[recipe.bits]
    assert found.top1_agreement > {4: 0.5, 8: 0.9, 16: 0.97}[recipe.bits]
    kept = json.loads((tmp_path / "made" / "conversion.json").read_text())
    assert kept == report.to_dict()
    assert kept["source"] == str(smolvlm_source)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["made"]
    with Session(str(tmp_path / "made")) as session:
        assert session.model.runtime == {"vision": recipe.runtime, "language": recipe.runtime}
        assert session.ask("What is this?", images=[synthetic_picture(64)], max_tokens=4).tokens


def test_what_can_not_run_here_is_looked_at_and_says_so(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CoreMLRuntime, "unavailable", lambda self: "Core ML wants macOS")
    report = convert(str(smolvlm_source), Recipe("coreml", 16), output=tmp_path / "made")
    assert report.check.reason == "Core ML wants macOS"
    assert (report.check.kl_divergence, report.check.n_tokens) == (None, 0)
    assert (tmp_path / "made" / "coreml" / "decoder.mlpackage" / "Manifest.json").is_file()


def test_the_figures_are_those_of_transformers(smolvlm_source: Path, tmp_path: Path) -> None:
    """The same prompts through transformers and through an 8-bit graph of its own, outside."""
    report = convert(str(smolvlm_source), Recipe("onnx", 8), output=tmp_path / "made")
    source = _by_transformers(smolvlm_source)
    found = check._logits(tmp_path / "made", "onnx", "", Recorder())
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (source, found))
    divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert report.check.n_tokens == len(source)
    assert report.check.kl_divergence == pytest.approx(float(divergence), rel=0.02)
    same = float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert report.check.top1_agreement == pytest.approx(same, abs=0.005)


@torch.no_grad()
def _by_transformers(folder: Path) -> np.ndarray:
    """Logits float32 [n, V] before every token of the set's answers."""
    model = load_reference(folder)
    rows = []
    for forced in forced_prompts(load_family(folder)):
        ids: list[int] = []
        for part in forced.prompt.parts:
            ids += part if isinstance(part, tuple) else [model.config.image_token_id] * part.count
        pictures = {}
        if forced.prompt.images:
            pictures["pixel_values"] = torch.from_numpy(forced.prompt.images[0].pixel_values)[None]
        logits = model(input_ids=torch.tensor([[*ids, *forced.answer]]), **pictures).logits[0]
        rows.append(logits[len(ids) - 1 : -1].numpy())
    return np.concatenate(rows)


def test_figures_of_distributions_that_can_be_reckoned_by_hand() -> None:
    source = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    found = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32)) + 7
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(kl_divergence(source, found), [expected, 0], atol=1e-6)
    assert top1_agreement(source, found) == 0.5


def test_the_set_shows_a_picture_and_ends_answers_where_they_end(smolvlm_source: Path) -> None:
    family = load_family(smolvlm_source)
    forced = list(forced_prompts(family))
    assert [len(each.prompt.images) for each in forced] == [1, 1, *[0] * (len(CONVERSATIONS) - 2)]
    for each, (_, answer) in zip(forced, CONVERSATIONS, strict=True):
        assert family.tokenizer.decode(list(each.answer)) == answer


def test_a_second_call_finds_the_result_and_another_recipe_needs_force(
    smolvlm_source: Path, tmp_path: Path
) -> None:
    first = convert(str(smolvlm_source), ONNX)
    assert first.folder == str(tmp_path / f"{smolvlm_source.name}-onnx")
    told = Recorder()
    assert convert(str(smolvlm_source), ONNX, progress=told) == first
    assert "already" in told.notes[0]
    with pytest.raises(UsageError, match="another conversion") as caught:
        convert(str(smolvlm_source), Recipe("onnx", 8))
    assert "--force" in (caught.value.hint or "")
    again = convert(str(smolvlm_source), Recipe("onnx", 8), force=True)
    assert again.decoder_bits == 8
    assert not list(Path(again.folder).rglob("*_q4.onnx"))


def test_leaves_alone_what_it_has_not_made(smolvlm_source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("the only copy")
    with pytest.raises(UsageError, match="no conversion made it"):
        convert(str(smolvlm_source), ONNX, output=tmp_path / "mine", force=True)
    with pytest.raises(UsageError, match="the place of"):
        convert(str(smolvlm_source), ONNX, output=smolvlm_source, force=True)
    with pytest.raises(UsageError, match="the place of"):
        convert(str(smolvlm_source), ONNX, output=Path("/"), force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "the only copy"


def test_a_result_can_not_swallow_its_source(smolvlm_source: Path, tmp_path: Path) -> None:
    made = convert(str(smolvlm_source), ONNX, output=tmp_path / "made")
    inside = shutil.copytree(smolvlm_source, Path(made.folder) / "source")
    with pytest.raises(UsageError, match="the place of"):
        convert(str(inside), Recipe("onnx", 8), output=tmp_path / "made", force=True)
    assert (inside / "model.safetensors").is_file()


_KILLED = """
import os, sys
from edgevlm.models.convert import Recipe, convert, job
job.{victim} = lambda *_: os._exit(9)
convert(sys.argv[1], Recipe("onnx"))
"""


@pytest.mark.parametrize("victim", ["source_logits", "check"])
def test_goes_on_after_a_kill_with_what_was_finished(
    smolvlm_source: Path, tmp_path: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = _KILLED.format(victim=victim)
    killed = subprocess.run([sys.executable, "-c", code, str(smolvlm_source)], check=False)
    assert killed.returncode == 9
    output = tmp_path / f"{smolvlm_source.name}-onnx"
    assert not output.exists()
    begun = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob(".*.converting/files/onnx/*")}
    assert len(begun) == 3
    if victim == "check":
        monkeypatch.setattr(job, "source_logits", None)  # has been done
    convert(str(smolvlm_source), ONNX)
    assert {p.name: p.stat().st_mtime_ns for p in (output / "onnx").iterdir()} == begun
    assert not list(tmp_path.glob(".*.converting"))


def test_goes_on_within_a_stage(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("edgevlm.models.onnx_export.export.vision_graph", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(smolvlm_source), ONNX)
    (decoder,) = tmp_path.glob(".*.converting/files/onnx/decoder*")
    written = decoder.stat().st_mtime_ns
    report = convert(str(smolvlm_source), ONNX)
    assert (Path(report.folder) / "onnx" / decoder.name).stat().st_mtime_ns == written


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_work_of_another_source_or_recipe_is_thrown_away(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done: list[str] = []
    work = Workplace(output, "one")
    work.stage("files", lambda: done.append("files"))
    (work.files / "a").write_text("of one")
    again = Workplace(output, "one")
    again.stage("files", lambda: done.append("again"))
    assert (done, (again.files / "a").read_text()) == (["files"], "of one")
    other = Workplace(output, "two")
    assert not list(other.files.iterdir())
    other.stage("files", lambda: done.append("other"))
    assert done == ["files", "other"]


def test_the_place_holds_the_old_result_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "a").write_text("old")
    work = Workplace(output, "key")
    (work.files / "a").write_text("new")
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda p, to: _fail() if p == work.files else rename(p, to))
        with pytest.raises(OSError, match="no"):
            work.publish()
    assert (output / "a").read_text() == "old"
    # A power cut between the two renames: the next call brings the old one back.
    output.rename(output.with_name(".out.replaced"))
    restore(output)
    assert (output / "a").read_text() == "old"
    work.publish()
    assert (output / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["out"]


def test_what_a_crash_left_of_an_older_result_is_in_nobodys_way(tmp_path: Path) -> None:
    output, old = tmp_path / "out", tmp_path / ".out.replaced"
    for folder in (output, old):
        folder.mkdir()
        (folder / "a").write_text(folder.name)
    restore(output)
    assert not old.exists()
    work = Workplace(output, "key")
    (work.files / "a").write_text("new")
    work.publish()
    assert (output / "a").read_text() == "new"


def _fail() -> None:
    raise OSError("no")


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "out", tmp_path / "locks"),
        pytest.raises(UsageError, match="Another"),
        alone(tmp_path / "out", tmp_path / "locks"),
    ):
        pass


def test_a_result_that_is_not_its_source_is_refused(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(source: Path, target: Path, **options: object) -> None:
        export_onnx(_altered(source, tmp_path / "altered"), target, **options)  # type: ignore

    monkeypatch.setattr("edgevlm.models.onnx_export.export_onnx", swapped)
    monkeypatch.setattr(job, "source_logits", _honest_logits)
    with pytest.raises(ModelCorrupt, match="not what its source is"):
        convert(str(smolvlm_source), Recipe("onnx", 16), output=tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert not list(tmp_path.glob(".*.converting"))


def _honest_logits(source: Path, path: Path, progress: object) -> None:
    np.save(path, _by_transformers(source))


def _altered(source: Path, folder: Path, value: float = 0) -> Path:
    """A copy with one projection of the decoder all `value`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.text_model.layers.1.mlp.down_proj.weight"][:] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_needs_room_before_it_begins(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=17 * 2**20)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match="needs") as caught:
        convert(str(smolvlm_source), replace(ONNX, bits=16), output=tmp_path / "made")
    assert "--output" in (caught.value.hint or "")
    assert not list(tmp_path.rglob("*.onnx"))


def test_weights_of_the_hub(smolvlm_source: Path, hub: HubServer, tmp_path: Path) -> None:
    files = {p.name: p.read_bytes() for p in smolvlm_source.iterdir()}
    repo = hub.add("acme/small-vlm", {**files, "onnx/old.onnx": b"", "notes.bin": b"x"})
    report = convert("acme/small-vlm", ONNX)
    assert report.source == f"hf://acme/small-vlm@{repo.commit}"
    assert report.folder == str(tmp_path / "small-vlm-onnx")
    assert len(hub.gets("model.safetensors")) == 1
    assert not hub.gets("notes.bin")
    convert("acme/small-vlm", Recipe("onnx", 8), output=tmp_path / "other")
    assert len(hub.gets("model.safetensors")) == 1


@pytest.mark.parametrize("name", ["acme/small-vlm", "smolvlm-256m", BASE])
def test_weights_that_were_fetched_can_be_removed(
    smolvlm_source: Path, hub: HubServer, home: Path, name: str
) -> None:
    settings = Settings(home=home)
    for repo in ("acme/small-vlm", BASE):
        hub.add(repo, {p.name: p.read_bytes() for p in smolvlm_source.iterdir()})
    source = find_source(name, settings, Silent())
    size = sum(path.stat().st_size for path in source.folder.iterdir())
    assert Store(settings).remove(name) == size
    assert not source.folder.exists()


def test_files_of_the_hub_are_named_after_their_repository(
    smolvlm_source: Path, hub: HubServer, tmp_path: Path
) -> None:
    hub.add("acme/small-vlm", {p.name: p.read_bytes() for p in smolvlm_source.iterdir()})
    report = convert("acme/small-vlm", RECIPES["llamacpp"])
    names = sorted(path.name for path in Path(report.folder).glob("*.gguf"))
    assert names == ["mmproj-small-vlm-F16.gguf", "small-vlm-Q4_K_M.gguf"]


def test_weights_that_are_no_numbers(smolvlm_source: Path, tmp_path: Path) -> None:
    source = _altered(smolvlm_source, tmp_path / "altered", value=np.nan)
    with pytest.raises(ModelCorrupt, match="no numbers"):
        convert(str(source), Recipe("onnx", 16))
    assert not list(tmp_path.glob(".*.converting"))


def test_what_can_not_be_converted(smolvlm_source: Path, hub: HubServer, tmp_path: Path) -> None:
    hub.add("acme/gguf-only", {"config.json": b'{"model_type": "smolvlm"}', "a.gguf": b"x"})
    with pytest.raises(ModelCorrupt, match="no safetensors"):
        convert("acme/gguf-only", ONNX)
    with pytest.raises(UnknownModel):
        convert("acme/none", ONNX)
    with pytest.raises(NotSupported, match="put together"):
        convert("edgevlm-tiny", ONNX)
    offline = load_settings({"EDGEVLM_HOME": str(tmp_path / "home"), "EDGEVLM_OFFLINE": "1"})
    with pytest.raises(Offline):
        convert("acme/gguf-only", ONNX, settings=offline)
    other = shutil.copytree(smolvlm_source, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(NotSupported, match="gpt2"):
        convert(str(other), ONNX)
    broken = shutil.copytree(smolvlm_source, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelCorrupt, match="safetensors"):
        convert(str(broken), ONNX)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("onnx", 5), "5 bits"),
        (("onnx", 4, 4), "4 bits"),
        (("coreml", 4, 32), "32 bits"),
        (("abacus", 4), "abacus"),
        (("onnx", 4, 16, "q4_0"), "llama.cpp"),
        (("llamacpp", None, 16, "q3_k"), "q3_k"),
        (("llamacpp", 8, 16, "q4_0"), "q4_0 has 4 bits"),
        (("llamacpp", 5), "None"),
    ],
)
def test_wrong_bits_are_refused_at_once(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Recipe.make(*arguments)  # type: ignore[arg-type]


def test_bits_and_quantization_say_the_same() -> None:
    assert Recipe.make("llamacpp", None).quantize == "q4_k_m"
    assert Recipe.make("llamacpp", 8).quantize == "q8_0"
    assert Recipe.make("llamacpp", None, 16, "Q8_0").bits == 8
    assert Recipe.make("onnx", None).bits == 4


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.models.convert.recipe.find_spec", lambda _: None)
    for runtime, extras in (("onnx", "convert"), ("mlx", "convert,mlx")):
        with pytest.raises(NotSupported) as caught:
            Recipe(runtime).check_installed()
        assert caught.value.hint == f"Run: pip install 'edgevlm[{extras}]'"
        assert caught.value.exit_code == 4
