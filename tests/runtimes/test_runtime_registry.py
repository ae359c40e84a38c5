"""Runtimes are found by entry points, ours and those of packages installed beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.errors import NotSupported, UnknownRuntime
from edgevlm.runtimes import get_runtime, installed_runtimes
from edgevlm.runtimes.onnx import OnnxRuntime

WORKING = """
class Fast:
    name = "fast"

    def unavailable(self):
        return None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Lay a package with one runtime where Python finds installed ones."""

    def lay(package: str, runtime: str, source: str, extra: str = "") -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata + (f"Provides-Extra: {extra}\n" if extra else ""))
        entry = f"[edgevlm.runtimes]\n{runtime} = {package}_runtime:Fast\n"
        (info / "entry_points.txt").write_text(entry)
        (tmp_path / f"{package}_runtime.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    return lay


def test_ours_is_there() -> None:
    assert "onnx" in installed_runtimes()
    runtime = get_runtime("onnx")
    assert isinstance(runtime, OnnxRuntime)
    assert (runtime.name, runtime.unavailable()) == ("onnx", None)


def test_a_package_beside_ours_adds_one(install) -> None:  # type: ignore[no-untyped-def]
    install("speedy", "fast", WORKING)
    assert {"fast", "onnx"} <= set(installed_runtimes())
    assert get_runtime("fast").name == "fast"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownRuntime, match="'tpu'") as caught:
        get_runtime("tpu")
    assert "onnx" in (caught.value.hint or "")


def test_a_missing_extra_comes_with_its_command(install) -> None:  # type: ignore[no-untyped-def]
    install("lazy", "gpu", "import a_module_nobody_has\n", extra="gpu")
    with pytest.raises(NotSupported, match="'a_module_nobody_has' is not installed") as caught:
        get_runtime("gpu")
    assert "pip install --upgrade 'lazy[gpu]'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("dividing", "1/0"),
        ("other", "class Slow: ..."),
        ("failing", "class Fast:\n    def __init__(self): raise OSError('no\\nway')"),
    ],
)
def test_a_broken_one_harms_only_itself(install, package: str, source: str) -> None:  # type: ignore[no-untyped-def]
    install(package, "broken", source)
    assert "broken" in installed_runtimes()
    assert get_runtime("onnx").unavailable() is None
    with pytest.raises(NotSupported, match="'broken' can't be loaded") as caught:
        get_runtime("broken")
    assert "\n" not in caught.value.message
    assert f"pip install --upgrade {package}" in (caught.value.hint or "")


def test_another_package_cannot_take_our_name(install) -> None:  # type: ignore[no-untyped-def]
    install("aaa", "onnx", WORKING)
    assert isinstance(get_runtime("onnx"), OnnxRuntime)
