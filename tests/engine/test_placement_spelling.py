from __future__ import annotations

import pytest

from edgevlm.engine.placement import Placement


@pytest.mark.parametrize("text", ["onnx", "onnx+llamacpp", "my_runtime2"])
def test_a_placement_reads_as_it_is_spelled(text: str) -> None:
    assert str(Placement.parse(text)) == text


def test_one_runtime_has_both_parts() -> None:
    assert Placement.parse("mlx") == Placement("mlx", "mlx")
    assert Placement.parse("mlx+mlx") == Placement("mlx", "mlx")
    assert Placement.parse("onnx+mlx") == Placement(vision="onnx", language="mlx")


@pytest.mark.parametrize("text", ["", "+", "onnx+", "+onnx", "a+b+c", "ONNX", "../onnx", "on nx"])
def test_what_is_no_placement(text: str) -> None:
    with pytest.raises(ValueError, match="placement"):
        Placement.parse(text)
