"""Weights outside the model's folder: refused by every ONNX Runtime that we run on."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgevlm.errors import ModelCorrupt
from edgevlm.runtimes.onnx_paths import checks_paths_itself, stray_path
from edgevlm.runtimes.onnx_session import Session

OUTSIDE = ["../secret.bin", "/etc/passwd", "sub/w.bin", "C:\\w.bin", "..", "~x", "a\\b", "./w.bin"]


def write_graph(path: Path, location: str) -> Path:
    """y = x + w, with w [4] float32 in a file of its own."""
    weights = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    ports = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", OUTSIDE)
@pytest.mark.parametrize("version", [onnxruntime.__version__, "1.23.2"])
def test_weights_outside_the_folder(
    tmp_path: Path, location: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(ModelCorrupt):
        Session(write_graph(tmp_path / "m.onnx", location), 1)
    assert stray_path(tmp_path / "m.onnx") == location


def test_a_file_beside_the_graph_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    assert not checks_paths_itself()
    (tmp_path / "m.onnx_data").write_bytes(bytes(16))
    Session(write_graph(tmp_path / "m.onnx", "m.onnx_data"), 1).close()


def test_a_path_hidden_by_another_order_of_fields(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", "../secret.bin")
    usual, turned = b"\n\x08location\x12\r../secret.bin", b"\x12\r../secret.bin\n\x08location"
    data = path.read_bytes()
    assert usual in data
    path.write_bytes(data.replace(usual, turned))
    hidden = onnx.load(path, load_external_data=False).graph.initializer[0].external_data[0]
    assert hidden.value == "../secret.bin"
    assert stray_path(path) == "a place that can't be read"


def test_a_second_path_is_seen_too(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", "plain.bin")
    path.write_bytes(path.read_bytes() + b"\n\x08location\x12\x02..")
    assert stray_path(path) == ".."


def test_a_graph_with_its_weights_inside(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no weights elsewhere")
    assert stray_path(tmp_path / "m.onnx") is None
    (tmp_path / "m.onnx").write_bytes(b"")
    assert stray_path(tmp_path / "m.onnx") is None
