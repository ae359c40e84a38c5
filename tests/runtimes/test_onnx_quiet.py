"""What onnxruntime warns of at import stays unseen; what others write meanwhile does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm.runtimes.onnx_quiet import without_discovery_warnings

WARNING = (
    "2026-01-21 12:08:58.79 [W:onnxruntime:Default, device_discovery.cc:164 DiscoverDevices] "
    'GPU device discovery failed: Failed to open file: "/sys/class/drm/card0/device/vendor"\n'
)


def test_the_warning_is_dropped_and_the_rest_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    with without_discovery_warnings():
        os.write(2, f"before\n{WARNING}after\n".encode())
        assert capfd.readouterr().err == ""
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "before\nafter\nlater\n"


def test_what_was_written_comes_out_when_the_import_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def failing_import() -> None:
        os.write(2, f"{WARNING}a reason\n".encode())
        raise ImportError

    with pytest.raises(ImportError), without_discovery_warnings():
        failing_import()
    assert capfd.readouterr().err == "a reason\n"


def test_a_warning_import_loads_without_a_word(tmp_path: Path) -> None:
    """In a process of its own, with an onnxruntime that warns as the real one may."""
    source = f"import os\nos.write(2, {WARNING.encode()!r})\nvalue = 5\n"
    (tmp_path / "onnxruntime.py").write_text(source)
    program = "from edgevlm.runtimes.onnx_quiet import onnxruntime; print(onnxruntime.value)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("5\n", "")


def test_a_closed_stderr_is_no_hindrance() -> None:
    program = "import os; os.close(2); import edgevlm.runtimes.onnx_session; print('loaded')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "loaded\n"
