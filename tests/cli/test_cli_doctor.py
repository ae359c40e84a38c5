from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer

from edgevlm import load_model
from edgevlm.cli import run
from edgevlm.doctor import model, models, put_together
from edgevlm.errors import ModelCorrupt
from edgevlm.models.layouts import discover
from edgevlm.models.publish import Manifest, PublishedFile, publish
from edgevlm.models.receive import hash_file
from edgevlm.settings import load_settings

CLOSED = "http://127.0.0.1:9"


def test_reports_without_a_hub_or_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    assert run(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    by_name = {(f["area"], f["name"]): f for f in findings}
    assert by_name["runtime", "onnx"]["status"] == "ok"
    assert by_name["network", "hub"]["status"] == "note"
    assert by_name["model", "none"]["status"] == "note"
    assert {f["status"] for f in findings} == {"ok", "note"}


def test_offline_asks_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    assert run(["doctor"]) == 0
    assert "not asked" in capsys.readouterr().out


def test_a_home_that_cannot_be_made_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    assert run(["doctor"]) == 1
    assert "✗ state: home" in capsys.readouterr().out


def test_no_password_of_the_hub_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", CLOSED.replace("//", "//me:hunter2@"))
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"{CLOSED} can't be reached" in out
    assert "hunter2" not in out


def test_models_are_examined_as_they_are_and_not_fetched(
    smolvlm: Path, home: Path, hub: HubServer
) -> None:
    _install(smolvlm, home, "smolvlm-256m")
    findings = list(models(load_settings()))
    assert [f.status for f in findings] == ["ok"] * 4
    assert hub.requests == []


def _install(folder: Path, home: Path, name: str) -> None:
    """Publish a copy of `folder` as what an older catalog meant by `name`."""
    staging = home / "models" / "copy"
    shutil.copytree(folder, staging)
    paths = [p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()]
    files = {}
    for path in paths:
        known, mtime = hash_file(staging / path), (staging / path).stat().st_mtime_ns
        files[path] = PublishedFile(known.size, known.sha256, mtime, "a test")
    roles = discover(paths, "onnx", name).roles
    manifest = Manifest(name, "onnx", plan="of an older catalog", files=files, roles=roles)
    publish(staging, home / "models" / name / "onnx", manifest)


def test_a_model_that_is_put_together_right(smolvlm: Path) -> None:
    findings = list(model(str(smolvlm), load_settings()))
    assert [f.status for f in findings] == ["ok"] * 4


def test_a_model_with_the_wrong_token_count_fails(smolvlm: Path) -> None:
    """A processor that counts other image tokens than the encoder gives."""
    with load_model(str(smolvlm)) as loaded:
        encode = loaded.vision.encode
        loaded.vision.encode = lambda i, c: np.repeat(encode(i, c), 2, axis=0)  # type: ignore
        with pytest.raises(ModelCorrupt, match="embeddings of shape"):
            list(put_together(loaded))


def test_a_model_without_its_template_fails(smolvlm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smolvlm, folder)
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if path.exists():
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            path.write_text(json.dumps(config))
    [finding] = model(str(folder), load_settings())
    assert finding.status == "fail"
    assert "template" in finding.detail
