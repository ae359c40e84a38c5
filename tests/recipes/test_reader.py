"""The reader's graph says what its torch modules say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from reader import add_reader
from reader_net import PICTURE, Reader, lexicon_ids

from edgevlm.models.onnx_export.graph import Graph

WORDS = ("cat", "house", "elephant"[:8], "7", "100")


@pytest.fixture(scope="module")
def reader() -> Reader:
    """Untrained, but with weights that fp16 holds exactly and norms that do something."""
    torch.manual_seed(0)
    reader = Reader()
    with torch.no_grad():
        for name, value in reader.state_dict().items():
            if name.endswith(("running_var", "norms.weight")):
                value.uniform_(0.8, 1.2)
            elif value.is_floating_point():
                value += 0.01 * torch.randn_like(value)
    return reader.eval()


def test_graph_reads_as_torch_does(reader: Reader, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(2, 3, PICTURE, PICTURE)).astype(np.float32)
    graph = Graph("reader")
    source = graph.input("pixels", np.float32, ["n", 3, PICTURE, PICTURE])
    state = {name: value.numpy() for name, value in reader.state_dict().items()}
    presence, row, probability = add_reader(graph, state, source, WORDS)
    graph.output(presence, "presence", np.float32, ["n"])
    graph.output(row, "row", np.int64, ["n"])
    graph.output(probability, "probability", np.float32, ["n"])
    graph.save(tmp_path / "reader.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "reader.onnx")
    found = session.run(None, {"pixels": pixels})
    with torch.no_grad():
        expected = reader(torch.from_numpy(pixels), lexicon_ids(WORDS))
    np.testing.assert_array_equal(found[1], expected[1].numpy())
    np.testing.assert_allclose(found[0], expected[0].numpy(), rtol=0, atol=2e-2)
    np.testing.assert_allclose(found[2], expected[2].numpy(), rtol=0, atol=1e-2)
