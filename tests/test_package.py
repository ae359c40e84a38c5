"""What the wheel carries: everything that runs from an installed copy."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_carries_every_file_of_the_package(wheel: set[str]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "edgevlm"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    present = {name for name in tracked if (ROOT / name).exists()}
    assert present <= wheel


@pytest.mark.parametrize("room", ["adapters", "devices"])
def test_the_wheel_carries_shipped_data(wheel: set[str], room: str) -> None:
    files = {path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*") if path.is_file()}
    assert {f"edgevlm/data/{room}/{path.as_posix()}" for path in files} <= wheel


def test_the_wheel_carries_nothing_else(wheel: set[str]) -> None:
    roots = {name.partition("/")[0] for name in wheel}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"edgevlm"}
