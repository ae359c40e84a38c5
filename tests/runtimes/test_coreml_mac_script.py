"""The script for a Mac: refused elsewhere, and its table where the interpreter stands in."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from coreml_interpreter import InterpretedPackage, install

SCRIPT = Path(__file__).parents[1] / "mac" / "coreml_parity.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("coreml_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "coreml_parity", module)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def test_elsewhere_it_says_that_it_needs_macos(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert script.main([]) == 4
    assert capsys.readouterr() == (
        "",
        "This wants a Mac that runs Core ML: Core ML runs models on macOS only.\n",
    )


def test_its_table(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    assert script.main(["--steps", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 4 + 2
    assert sum("against" not in line and "4 of 4 tokens equal" in line for line in lines) == 5
    assert "| random, 4 bits | vision | interpreter | 0.0000 |" in lines[-4]
    assert "| random, 4 bits | adapter removed | before it | 0.0000 | 0 |" in lines[-1]


def test_a_kernel_that_is_off(
    script: ModuleType,
    smolvlm_coreml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Off(InterpretedPackage):
        def predict(self, inputs, state=None):  # type: ignore[no-untyped-def]
            outputs = super().predict(inputs, state)
            return {name: array + np.float16(0.5) for name, array in outputs.items()}

    install(monkeypatch)
    monkeypatch.setattr("edgevlm.runtimes.coreml_predict.Package", Off)
    assert script.main([str(smolvlm_coreml), "--steps", "2"]) == 1
    assert capsys.readouterr().out.count("TOO FAR") == 3


def test_an_adapter_that_stays(
    script: ModuleType,
    smolvlm_coreml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Keeping(InterpretedPackage):
        def write_state(self, state, name, value):  # type: ignore[no-untyped-def]
            if value.any():
                super().write_state(state, name, value)

    install(monkeypatch)
    monkeypatch.setattr("edgevlm.runtimes.coreml_predict.Package", Keeping)
    assert script.main([str(smolvlm_coreml), "--steps", "2"]) == 1
    assert capsys.readouterr().out.count("TOO FAR") == 1
