"""`edgevlm model` as a person meets it: what it prints where, and the code it leaves with."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hub_server import DECODER, REPO, HubServer, model_files

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(hub: HubServer) -> HubServer:
    hub.add(REPO, model_files())
    return hub


@pytest.fixture
def model(edgevlm: Call) -> Call:
    return partial(edgevlm, "model")


@pytest.fixture
def pulled(hub: HubServer, model: Call) -> Path:
    """The folder of a model that is here."""
    code, out, _ = model("pull", REPO, "--json")
    assert code == 0
    return Path(json.loads(out)["folder"])


def test_list_shows_what_can_be_had(model: Call) -> None:
    code, out, err = model("list")
    assert (code, err) == (0, "")
    for words in (("edgevlm-tiny", "98.4 MB"), ("smolvlm2-500m", "507M"), ("smolvlm-256m", "256M")):
        assert any(all(word in line for word in words) for line in out.splitlines())


def test_list_all_has_a_line_for_each_runtime(model: Call) -> None:
    code, out, _ = model("list", "--all")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "smolvlm2-2.2b" in line and "llamacpp" in line]
    assert "q4_k_m" in line
    assert "hf://ggml-org/SmolVLM2-2.2B-Instruct-GGUF" in line


def test_list_as_json_tells_what_is_here(model: Call, pulled: Path) -> None:
    code, out, _ = model("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["smolvlm2-500m"]["installed"] == []
    assert rows["smolvlm2-500m"]["runtimes"]["onnx"]["quantization"]["decoder"] == "q4"
    (here,) = rows[REPO]["installed"]
    assert here["folder"] == str(pulled)
    assert here["files"] == 5
    code, out, _ = model("list")
    assert any(REPO in line and "onnx" in line for line in out.splitlines())
    assert REPO in model("list", "--all")[1]


def test_pull_says_where_the_model_is_and_keeps_stdout_for_that(
    hub: HubServer, model: Call
) -> None:
    code, out, err = model("pull", REPO)
    assert code == 0
    assert out.startswith(f"{REPO} is here for runtime onnx: 403 kB in /")
    assert err == f"Downloading {REPO} (403 kB) ...\n"
    code, _, err = model("pull", REPO)
    assert (code, err) == (0, "")
    assert len(hub.gets(DECODER)) == 1


def test_a_terminal_sees_a_bar(hub: HubServer) -> None:
    master, slave = pty.openpty()
    code = "import sys; from edgevlm.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "model", "pull", REPO, "--runtime", "onnx"],
        stderr=slave,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal so
        while chunk := os.read(master, 65536):
            shown += chunk
    os.close(master)
    assert b"Downloading" in shown
    assert b"Downloading" not in done.stdout.encode()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pull", "smolvlm2-50m"), 3, "Did you mean smolvlm2-500m"),
        (("pull", "acme/none"), 3, "The hub has no repository acme/none"),
        (("pull", "smolvlm2-2.2b", "--runtime", "onnx"), 3, "llamacpp, mlx"),
        (("pull", REPO, "--runtime", "llamacpp"), 3, "has no decoder"),
        (("pull", REPO, "--runtime", "abacus"), 4, "abacus"),
        (("pull", "smolvlm2-500m", "--runtime", "a b"), 2, "no placement"),
        (("pull", "smolvlm2-500m", "--runtime", "../onnx", "--force"), 2, "no placement"),
        (("show", "smolvlm2-500m", "--runtime", "a b"), 2, "no placement"),
        (("pull",), 2, "NAME"),
        (("show", "nothing"), 3, "There is no model"),
        (("verify", "smolvlm2-500m"), 3, "not on this device"),
        (("remove", "smolvlm2-500m", "--yes"), 3, "not on this device"),
        (("remove", "smolvlm2-500m"), 2, "--yes"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_a_code(
    hub: HubServer, model: Call, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = model(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_pull_may_be_told_to_choose(hub: HubServer, model: Call) -> None:
    assert model("pull", REPO, "--runtime", "auto")[0] == 0


def test_show_of_a_placement_on_two_runtimes(model: Call) -> None:
    shown = json.loads(model("show", "smolvlm2-500m", "--runtime", "onnx+llamacpp", "--json")[1])
    paths = [file["path"] for file in shown["runtimes"]["onnx+llamacpp"]["files"]]
    assert any("vision_encoder" in path for path in paths)
    assert any(path.endswith(".gguf") for path in paths)


def test_show_of_the_catalog_and_of_the_hub(hub: HubServer, model: Call) -> None:
    code, out, _ = model("show", "smolvlm2-256m")
    assert code == 0
    assert "SmolVLM2 256M" in out
    assert "onnx/decoder_model_merged_q4.onnx" in out
    assert "verified   no" in out
    document = json.loads(model("show", "edgevlm-tiny", "--json")[1])
    assert document["verified"] is True
    assert document["runtimes"]["onnx"]["files"][0]["size"] == 98_362_432
    files = json.loads(model("show", REPO, "--json")[1])["runtimes"]["onnx"]["files"]
    assert {file["path"]: file["size"] for file in files}[DECODER] == 300_000
    assert hub.gets(DECODER) == []


def test_show_of_a_model_that_is_here_needs_no_hub(
    hub: HubServer, model: Call, pulled: Path
) -> None:
    asked = len(hub.requests)
    code, out, _ = model("show", REPO)
    assert code == 0
    assert f"here for onnx: {pulled}" in out
    assert len(hub.requests) == asked


def test_verify_finds_the_altered_file_and_pull_mends_it(model: Call, pulled: Path) -> None:
    assert model("verify")[:2] == (0, f"{REPO} (onnx): 5 files, ok\n")
    (pulled / DECODER).write_bytes(bytes(300_000))
    code, out, err = model("verify", REPO)
    assert (code, out) == (3, f"{REPO} (onnx): 5 files, damaged\n")
    assert DECODER in err
    code, out, _ = model("verify", "--json")
    assert code == 3
    assert json.loads(out)[0]["altered"] == {DECODER: "its contents have changed"}
    assert model("pull", REPO)[0] == 0
    assert model("verify")[0] == 0


def test_remove_says_what_it_freed(model: Call, pulled: Path) -> None:
    code, out, _ = model("remove", REPO, "--yes", "--json")
    assert code == 0
    assert json.loads(out)["name"] == REPO
    assert json.loads(out)["freed"] > 403_000
    assert not pulled.exists()
    assert model("verify")[1] == "No model is on this device.\n"


@pytest.mark.parametrize("command", ["list", "pull", "show", "remove", "verify"])
def test_every_command_has_examples_and_json(model: Call, command: str) -> None:
    code, out, _ = model(command, "--help")
    assert code == 0
    assert f"edgevlm model {command}" in out.partition("Examples:")[2]
    assert "--json" in out
