"""`edgevlm device` as a person meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgevlm.cli import run
from edgevlm.devices import machine as machine_module
from edgevlm.devices import measure
from edgevlm.engine.placement import Placement
from edgevlm.models.store import Store

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of round figures: what is measured is another test's subject."""
    monkeypatch.setattr(measure, "measure", lambda threads: measure.Measured(200.0, 50.0))


@pytest.fixture
def device(edgevlm: Call) -> Call:
    return partial(edgevlm, "device")


def test_show_says_what_this_machine_is(device: Call) -> None:
    code, out, err = device("show")
    assert (code, err) == (0, "")
    for word in ("processor", "200 GFLOPS", "50 GB/s", "left for a model", "onnx: can run"):
        assert word in out
    document = json.loads(device("show", "--json")[1])
    assert document["total"] >= document["available"] > 0
    assert document["measured"] == {"gflops": 200.0, "bandwidth": 50.0}
    assert document["runtimes"]["onnx"] == {"unavailable": None}


def test_list_has_every_profile_with_its_sources(device: Call) -> None:
    code, out, _ = device("list")
    assert code == 0
    assert "raspberry-pi-5-8gb" in out
    rows = {row["name"]: row for row in json.loads(device("list", "--json")[1])}
    bandwidth = rows["apple-m4"]["figures"]["memory.bandwidth"]
    assert bandwidth["value"] == 120
    assert bandwidth["source"].startswith("http")


def test_plan_for_this_machine_adds_up(device: Call) -> None:
    code, out, err = device("plan", "--model", "smolvlm2-256m")
    assert (code, err) == (0, "")
    for word in ("runs on", "KV cache", "tokens a second", "not chosen"):
        assert word in out
    plan = json.loads(device("plan", "--model", "smolvlm2-256m", "--json")[1])
    chosen = plan["chosen"]
    memory = chosen["memory"]
    assert memory["total"] == sum(memory[key] for key in memory if key != "total")
    # 2 x layers x kv_heads x head_dim x bytes x tokens
    width = {"onnx": 4, "llamacpp": 2}[chosen["placement"].rpartition("+")[2]]
    assert memory["cache"] == 2 * 30 * 3 * 64 * width * 8192
    assert plan["image_tiles"] == 13
    assert all(each["refused"] for each in plan["rejected"])


def test_a_shorter_context_and_fewer_pictures_cost_less(device: Call) -> None:
    def plan(*more: str) -> dict[str, object]:
        answer: dict[str, object] = json.loads(
            device("plan", "--model", "smolvlm2-500m", "--runtime", "onnx", "--json", *more)[1]
        )
        return answer

    usual = plan()
    short = plan("--context", "2048")
    assert short["chosen"]["memory"]["cache"] * 4 == usual["chosen"]["memory"]["cache"]  # type: ignore[index]
    none = plan("--images", "0")
    assert none["image_tiles"] == 0
    assert none["chosen"]["prediction"]["vision_s"] == 0  # type: ignore[index]
    assert plan("--images", "2")["image_tiles"] == 26


def test_plan_for_a_mac_chooses_mlx(device: Call) -> None:
    code, out, _ = device("plan", "--model", "smolvlm2-500m", "--profile", "apple-m1")
    assert code == 0
    assert "runs on    mlx\n" in out
    assert "estimated" in out


def test_what_does_not_fit_names_the_largest_that_would(device: Call) -> None:
    asked = ("plan", "--model", "smolvlm2-2.2b", "--profile", "raspberry-pi-5-4gb")
    code, out, _ = device(*asked, "--json")
    assert code == 0
    assert 2048 <= json.loads(out)["context"] < 8192
    code, out, err = device(*asked, "--context", "8192")
    assert code == 4
    assert "does not fit: wants" in out
    assert "smolvlm2-2.2b does not fit on Raspberry Pi 5, 4 GB." in err
    assert "is the largest model that would fit" in err


def test_a_plan_shortens_the_context_rather_than_fetch_another_copy(
    device: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan() -> tuple[str, int]:
        made = json.loads(device("plan", "--model", "smolvlm2-500m", "--json")[1])
        return made["chosen"]["placement"], made["context"]

    # Less than ONNX Runtime wants for the whole context, and more than llama.cpp does.
    monkeypatch.setattr("edgevlm.devices.target.memory_left", lambda *_: 1_600_000_000)
    placement, context = plan()
    assert placement != "onnx"
    assert context == 8192
    monkeypatch.setattr(Store, "here", lambda *_: (Placement.parse("onnx"),))
    placement, context = plan()
    assert placement == "onnx"
    assert 2048 <= context < 8192


def test_a_phone_needs_a_conversion(device: Call) -> None:
    code, out, err = device("plan", "--model", "smolvlm2-500m", "--profile", "iphone-16")
    assert code == 4
    assert "coreml: no files are published for it" in out
    assert "edgevlm model convert" in err


def test_what_has_no_runtime_there_is_not_called_too_large(device: Call) -> None:
    """On Core ML it would fit, but there are no files; llama.cpp does not run there."""
    code, _, err = device("plan", "--model", "smolvlm2-2.2b", "--profile", "iphone-15")
    assert code == 4
    assert "does not fit" not in err
    assert "does not run on this device" in err


def test_a_plan_counts_as_people_do(device: Call) -> None:
    assert "pictures of 13 tiles" in device("plan", "--model", "smolvlm2-256m")[1]
    assert "(pictures of 1 tile)" in device("plan", "--model", "edgevlm-tiny")[1]
    assert "(no pictures)" in device("plan", "--model", "edgevlm-tiny", "--images", "0")[1]


def test_a_folder_without_a_model_is_not_to_be_fetched(device: Call, tmp_path: Path) -> None:
    code, _, err = device("plan", "--model", str(tmp_path))
    assert code == 3
    assert "model pull" not in err
    assert "holds no files of a model" in err
    (tmp_path / "decoder.gguf").touch()
    code, _, err = device("plan", "--model", str(tmp_path / "decoder.gguf"))
    assert code == 3
    assert "Give the folder" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--profile", "aple-m1"), 2, "apple-m1"),
        (("--image-size", "wide"), 2, "1024x768"),
        (("--image-size", "0x100"), 2, "1024x768"),
        (("--images", "40"), 2, "the context holds"),
        (("--context", "0"), 2, "--context"),
        (("--runtime", "abacus"), 2, "abacus"),
        (("--model", "smolvlm9"), 3, "smolvlm9"),
    ],
)
def test_what_can_not_be_planned_is_one_line_and_a_code(
    device: Call, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = device("plan", *arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_a_folder_is_planned_by_its_own_files(device: Call, smolvlm: Path) -> None:
    plan = json.loads(device("plan", "--model", str(smolvlm), "--json")[1])
    assert plan["chosen"]["placement"] == "onnx"
    assert plan["chosen"]["memory"]["cache"] == 2 * 2 * 2 * 16 * 4 * 8192


def test_a_model_that_will_not_fit_is_refused_before_its_download(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from edgevlm.models import shapes

    small = replace(machine_module.this_machine(), limit=2**30, available=900 * 2**20)
    monkeypatch.setattr(shapes, "this_machine", lambda: small)
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    for command in (["model", "pull", "smolvlm2-2.2b"], ["chat", "Hi", "--model", "smolvlm2-2.2b"]):
        assert run(command) == 4
        err = capsys.readouterr().err
        assert "smolvlm2-2.2b on" in err
        assert "is the largest model that would fit" in err
    # Who wants it all the same gets as far as the network.
    assert run(["model", "pull", "smolvlm2-2.2b", "--force"]) == 3
    assert "EDGEVLM_OFFLINE" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "list", "plan"])
def test_every_command_has_examples_and_json(device: Call, command: str) -> None:
    code, out, _ = device(command, "--help")
    assert code == 0
    assert f"edgevlm device {command}" in out.partition("Examples:")[2]
    assert "--json" in out
