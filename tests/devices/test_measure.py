"""Two figures of this machine, measured once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevlm.devices import measure as module
from edgevlm.devices.measure import Measured, measured


def test_figures_are_kept_for_the_same_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([Measured(100.0, 20.0), Measured(200.0, 40.0)])
    monkeypatch.setattr(module, "measure", lambda threads: next(found))
    assert measured(tmp_path, "one", 2) == Measured(100.0, 20.0)
    assert measured(tmp_path, "one", 2) == Measured(100.0, 20.0)
    assert measured(tmp_path, "another", 2) == Measured(200.0, 40.0)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"fingerprint": "one 1", "gflops": 0, "bandwidth": 1}', "{\x00"]
)
def test_a_broken_record_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "device.json").write_text(text)
    monkeypatch.setattr(module, "measure", lambda threads: Measured(1.0, 2.0))
    assert measured(tmp_path, "one", 1) == Measured(1.0, 2.0)
    assert json.loads((tmp_path / "device.json").read_text())["gflops"] == 1.0


def test_a_home_that_can_not_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure", lambda threads: Measured(1.0, 2.0))
    (tmp_path / "file").write_text("")
    assert measured(tmp_path / "file", "one", 1) == Measured(1.0, 2.0)


def test_a_measurement_gives_figures_of_a_computer() -> None:
    found = module.measure(1)
    assert 0.1 < found.gflops < 10_000
    assert 0.1 < found.bandwidth < 10_000
