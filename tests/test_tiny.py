"""The built-in model with its real weights, as a newcomer meets it: no hub, nothing cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from known_photo import PHOTO, names_it

from edgevlm import Session
from edgevlm.cli import run

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def no_hub(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_HOME", str(tiny_home))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)


@pytest.mark.usefixtures("no_hub")
def test_chat_falls_back_and_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "What is in this picture?", "--image", str(PHOTO)]) == 0
    out, err = capsys.readouterr()
    assert names_it(out)
    [line] = err.strip().splitlines()
    assert line.startswith("Using edgevlm-tiny, the small built-in model: ")


@pytest.mark.usefixtures("no_hub")
def test_a_model_asked_for_by_name_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["chat", "What is this?", "--image", str(PHOTO), "--model", "smolvlm2-500m"])
    out, err = capsys.readouterr()
    assert (code, out) == (3, "")
    assert err.startswith("error: ")


@pytest.mark.usefixtures("no_hub")
def test_a_model_named_in_the_environment_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVLM_MODEL", "smolvlm2-500m")
    assert run(["chat", "What is this?", "--image", str(PHOTO)]) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_hub")
def test_it_works_offline_once_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    assert run(["chat", "--model", "edgevlm-tiny", "--image", str(PHOTO), "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["model"] == "edgevlm-tiny"
    assert "q4" in reply["quantization"]
    assert names_it(reply["text"])


@pytest.mark.usefixtures("no_hub")
def test_doctor_finds_it_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    assert "✓ model: edgevlm-tiny" in capsys.readouterr().out


@pytest.mark.usefixtures("no_hub")
def test_a_conversation_encodes_the_picture_once() -> None:
    with Session("edgevlm-tiny") as session:
        first = session.ask("What is in this picture?", images=[PHOTO])
        second = session.ask("Is it an animal?")
        plain = session.ask("What is the capital of France?")
    assert names_it(first.text)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    assert second.timings.vision_ms < first.timings.vision_ms
    assert plain.text


@pytest.mark.usefixtures("no_hub")
def test_text_alone_still_talks() -> None:
    with Session("edgevlm-tiny") as session:
        assert "paris" in session.ask("What is the capital of France?").text.lower()


@pytest.mark.usefixtures("no_hub")
def test_its_answer_fits_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.json"
    kinds = ["food", "animal", "vehicle"]
    properties = {
        "object": {"type": "string", "minLength": 1, "maxLength": 30},
        "kind": {"enum": kinds},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    }
    schema.write_text(
        json.dumps({"type": "object", "properties": properties, "required": list(properties)})
    )
    asked = ["chat", "What is this?", "--model", "edgevlm-tiny", "--image", str(PHOTO)]
    code = run([*asked, "--schema", str(schema), "--json", "--tokens"])
    reply = json.loads(capsys.readouterr().out)
    assert code == 0
    assert reply["parsed"] == json.loads(reply["text"])
    assert 1 <= len(reply["parsed"]["object"]) <= 30
    assert reply["parsed"]["kind"] in kinds
    assert len(reply["parsed"]["sizes"]) == 2
    # What the model would rather have said is told beside what it was let to say.
    assert any(token["id"] != token["top"][0]["id"] for token in reply["tokens"])
