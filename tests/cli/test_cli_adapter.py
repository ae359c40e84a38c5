"""`edgevlm adapter` as a person meets it: what it prints where, and the code it leaves with."""

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
from hub_server import HubServer
from lora_factory import write_peft
from pack_factory import SMALL, change_manifest, contents, make_pack

from edgevlm.adapters import catalog

Call = Callable[..., tuple[int, str, str]]
REPO = "acme/terms"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ships: `medical` 1.0.0."""
    folder = tmp_path / "packs"
    make_pack(folder / "medical")
    monkeypatch.setattr(catalog, "packs_folder", lambda: folder)
    return folder


@pytest.fixture
def hub(hub: HubServer, tmp_path: Path) -> HubServer:
    hub.add(REPO, contents(write_peft(tmp_path / "terms", SMALL)))
    return hub


@pytest.fixture
def adapter(edgevlm: Call) -> Call:
    return partial(edgevlm, "adapter")


def rows(adapter: Call) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(adapter("list", "--json")[1])}


def test_install_says_what_came_and_where_it_is(packs: Path, adapter: Call) -> None:
    code, out, err = adapter("install", "medical")
    assert code == 0
    assert out.startswith("medical 1.0.0 is installed: 13")
    assert " kB, licence CC0-1.0, in /" in out
    assert err.startswith("Copying medical (13")
    code, out, err = adapter("install", "medical@1.0.0")
    assert (code, err) == (0, "")
    assert out.startswith("medical 1.0.0 is installed already, in /")
    make_pack(packs / "medical", version="1.1.0", seed=1)
    assert "medical 1.1.0 is installed in place of 1.0.0: " in adapter("install", "medical")[1]


def test_install_as_json(packs: Path, adapter: Call) -> None:
    document = json.loads(adapter("install", "medical", "--json")[1])
    assert (document["changed"], document["before"], document["version"]) == (True, None, "1.0.0")
    assert document["bases"] == [{"name": "edgevlm-tiny", "fingerprint": None, "edition": None}]
    assert document["licence"] == "CC0-1.0"
    assert document["files"][WEIGHTS] == (Path(document["folder"]) / WEIGHTS).stat().st_size
    assert json.loads(adapter("install", "medical", "--json")[1]) == document | {
        "changed": False,
        "before": "1.0.0",
    }


def test_list_shows_what_ships_and_what_is_installed(
    packs: Path, adapter: Call, hub: HubServer
) -> None:
    (line,) = [line for line in adapter("list")[1].splitlines() if "medical" in line]
    assert line.split()[:7] == [
        "medical",
        "1.0.0",
        *line.split()[2:4],
        "CC0-1.0",
        "edgevlm-tiny",
        "-",
    ]
    assert line.rstrip().endswith("All about medical")
    assert rows(adapter)["medical"]["installed"] is None
    adapter("install", "medical")
    adapter("install", REPO)
    make_pack(packs / "medical", version="1.1.0", seed=1)
    out = adapter("list")[1]
    assert "yes (1.1.0 ships)" in out
    assert any(line.split()[0] == REPO and "yes" in line for line in out.splitlines()[1:])
    listed = rows(adapter)
    assert list(listed) == [REPO, "medical"]
    assert (listed["medical"]["version"], listed["medical"]["ships"]) == ("1.0.0", "1.1.0")
    assert listed["medical"]["installed"]
    assert listed[REPO]["ships"] is None


def test_where_nothing_ships_or_is_installed_list_says_so(
    tmp_path: Path, adapter: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "packs_folder", lambda: tmp_path)
    assert adapter("list")[:2] == (
        0,
        "No adapter ships or is installed; owner/repo of the hub and folders work.\n",
    )
    assert adapter("list", "--json")[1] == "[]\n"
    assert adapter("verify")[:2] == (0, "No adapter is installed.\n")


def test_one_of_the_hub_without_a_manifest(hub: HubServer, packs: Path, adapter: Call) -> None:
    code, out, _ = adapter("show", REPO)
    assert code == 0
    assert f"from       hf://{REPO}\n" in out
    assert "installed  no\n" in out
    assert WEIGHTS in out
    assert hub.gets(WEIGHTS) == []
    code, out, err = adapter("install", REPO)
    assert code == 0
    assert out.startswith(f"{REPO} is installed: ")
    assert "licence unknown" in out
    assert err.startswith(f"Downloading {REPO} (")
    out = adapter("show", REPO)[1]
    assert "version    none given\n" in out
    assert "for        random/model\n" in out
    hub.add(REPO, contents(write_peft(Path(str(packs)) / "newer", SMALL, seed=7)))
    assert "is installed in place of what was there: " in adapter("install", REPO)[1]


def test_show_of_a_pack_and_of_what_is_installed(
    packs: Path, adapter: Call, tmp_path: Path
) -> None:
    out = adapter("show", "medical")[1]
    assert out.startswith("All about medical\nMade for tests.\n  name       medical\n")
    assert "  from       EdgeVLM, with which it ships\n  installed  no\n" in out
    assert "README.md" in out
    folder = json.loads(adapter("install", "medical", "--json")[1])["folder"]
    assert f"  installed  {folder}\n" in adapter("show", "medical")[1]
    shown = json.loads(adapter("show", "medical", "--json")[1])
    assert (shown["folder"], shown["ships"]) == (folder, "1.0.0")
    other = make_pack(tmp_path / "other", name="mine")
    assert json.loads(adapter("show", str(other), "--json")[1])["name"] == "mine"


def test_a_notice_is_told_at_install_and_shown(tmp_path: Path, adapter: Call) -> None:
    folder = make_pack(tmp_path / "mine")
    assert "  notice  " not in adapter("show", str(folder))[1]
    change_manifest(folder, notice="Not a diagnosis.")
    assert "\n  notice     Not a diagnosis.\n" in adapter("show", str(folder))[1]
    out = adapter("install", str(folder))[1]
    assert out.splitlines()[1:] == ["Every answer with it says: Not a diagnosis."]
    assert rows(adapter)["mine"]["notice"] == "Not a diagnosis."


def test_a_terminal_sees_a_bar(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    code = "import sys; from edgevlm.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "adapter", "install", str(make_pack(tmp_path / "mine"))],
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
    assert b"Copying mine" in shown
    assert done.stdout.startswith("mine 1.0.0 is installed: ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("install", "medcial"), 3, "Did you mean medical?"),
        (("install", "medical@2.0.0"), 3, "There is no medical@2.0.0: 1.0.0 ships."),
        (("install", "acme/none"), 3, "The hub has no repository acme/none"),
        (("install", "./nowhere"), 3, "There is no folder ./nowhere"),
        (("install", "/"), 3, "/ has no adapter_config.json"),
        (("install",), 2, "NAME"),
        (("show", "nothing"), 3, "There is no adapter 'nothing'"),
        (("verify", "medical"), 3, "edgevlm adapter install medical"),
        (("remove", "medical", "--yes"), 3, "medical is not installed"),
        (("remove", "medical"), 2, "--yes"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_a_code(
    packs: Path, hub: HubServer, adapter: Call, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = adapter(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_a_bad_adapter_is_refused_in_two_lines(tmp_path: Path, adapter: Call, home: Path) -> None:
    folder = make_pack(tmp_path / "bad")
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00.")
    code, out, err = adapter("install", str(folder))
    assert (code, out) == (3, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert not home.exists()


def test_verify_finds_the_altered_file_and_install_mends_it(packs: Path, adapter: Call) -> None:
    folder = Path(json.loads(adapter("install", "medical", "--json")[1])["folder"])
    assert adapter("verify")[:2] == (0, "medical: 4 files, ok\n")
    (folder / WEIGHTS).write_bytes(b"x")
    code, out, err = adapter("verify", "medical")
    assert (code, out) == (3, "medical: 4 files, damaged\n")
    assert f"medical: {WEIGHTS}: 1 bytes instead of" in err
    assert "edgevlm adapter install" in err
    code, out, _ = adapter("verify", "--json")
    assert code == 3
    assert list(json.loads(out)[0]["altered"]) == [WEIGHTS]
    assert adapter("install", "medical")[0] == 0
    assert adapter("verify")[0] == 0


def test_remove_says_what_it_freed(packs: Path, adapter: Call) -> None:
    document = json.loads(adapter("install", "medical", "--json")[1])
    code, out, _ = adapter("remove", "medical", "--yes", "--json")
    assert code == 0
    assert json.loads(out)["freed"] > document["size"]
    assert not Path(document["folder"]).exists()
    assert rows(adapter)["medical"]["installed"] is None


@pytest.mark.parametrize("command", ["list", "install", "show", "remove", "verify"])
def test_every_command_has_examples_and_json(adapter: Call, command: str) -> None:
    code, out, _ = adapter(command, "--help")
    assert code == 0
    assert f"edgevlm adapter {command}" in out.partition("Examples:")[2]
    assert "--json" in out


def test_the_list_of_commands_is_not_cut(adapter: Call) -> None:
    assert "..." not in adapter("--help")[1].split("Commands:")[1].split("Examples:")[0]
