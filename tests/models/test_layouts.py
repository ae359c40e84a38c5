"""Which file plays which part, for each runtime and for two at once."""

from __future__ import annotations

import pytest

from edgevlm.engine.placement import Placement
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.layouts import discover, nearest, offered

ONNX = ["onnx/vision_encoder_fp16.onnx", "onnx/embed_tokens.onnx", "onnx/decoder_model_merged.onnx"]
CONFIG = ["config.json", "tokenizer.json"]
PAIR = ["toy-Q4_K_M.gguf", "toy-Q8_0.gguf", "mmproj-toy-F16.gguf", "mmproj-toy-Q8_0.gguf"]


def test_a_gguf_pair_takes_the_decoder_at_4_bits_and_the_vision_encoder_at_16() -> None:
    layout = discover([*PAIR, *CONFIG, "README.md"], "llamacpp", "toy")
    assert layout.roles == {
        "decoder": "toy-Q4_K_M.gguf",
        "vision_encoder": "mmproj-toy-F16.gguf",
    }
    assert layout.quantization == {"decoder": "q4_k_m", "vision": "f16"}
    assert set(layout.paths) == {"toy-Q4_K_M.gguf", "mmproj-toy-F16.gguf", *CONFIG}


def test_a_decoder_in_several_files_is_all_of_them() -> None:
    shards = [f"big-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2)]
    layout = discover([*shards, "mmproj-F16.gguf"], "llamacpp", "big")
    assert layout.roles["decoder"] == shards[0]
    assert set(shards) <= set(layout.paths)


def test_an_adapter_beside_a_decoder_is_a_role_of_its_own() -> None:
    layout = discover(["decoder.gguf", "lora.gguf", *ONNX, *CONFIG], "onnx+llamacpp", "toy")
    assert layout.roles == {
        "decoder": "decoder.gguf",
        "lora": "lora.gguf",
        "vision_encoder": "onnx/vision_encoder_fp16.onnx",
    }
    assert "onnx/embed_tokens.onnx" not in layout.paths


def test_an_mlx_folder_may_lie_in_one_of_its_own() -> None:
    paths = ["mlx/model.safetensors", "mlx/config.json", "mlx/tokenizer.json", *CONFIG, *ONNX]
    assert discover(paths, "mlx", "toy").roles == {"weights": "mlx/model.safetensors"}
    assert discover(paths, "onnx+mlx", "toy").roles == {
        "weights": "mlx/model.safetensors",
        "vision_encoder": "onnx/vision_encoder_fp16.onnx",
    }


def test_every_pair_of_parts_is_offered() -> None:
    assert offered([*PAIR, *ONNX, *CONFIG]) == [
        Placement("onnx", "onnx"),
        Placement("onnx", "llamacpp"),
        Placement("llamacpp", "onnx"),
        Placement("llamacpp", "llamacpp"),
    ]


def test_a_decoder_alone_is_offered_nowhere_and_what_it_lacks_is_named() -> None:
    assert offered(["toy-Q4_K_M.gguf"]) == []
    with pytest.raises(ModelCorrupt, match="toy has no mmproj"):
        discover(["toy-Q4_K_M.gguf"], "llamacpp", "toy")


@pytest.mark.parametrize(
    ("paths", "runtime"),
    [
        (["coreml/decoder.mlpackage/Data/com.apple.CoreML/model.mlmodel"], "coreml"),
        (["a.gguf"], "llamacpp"),
        (["model.safetensors"], "mlx"),
        (["a.gguf", "onnx/embed_tokens.onnx"], "onnx"),
    ],
)
def test_what_a_folder_that_is_not_whole_seems_meant_for(paths: list[str], runtime: str) -> None:
    assert nearest(paths, "toy") == runtime


def test_a_folder_of_something_else_is_not_called_a_broken_model() -> None:
    with pytest.raises(ModelCorrupt, match="toy holds no files of a model") as caught:
        nearest(["README.md", "config.json"], "toy")
    assert all(kind in str(caught.value.hint) for kind in ("onnx", "gguf", "safetensors"))


def test_a_runtime_of_someone_else_has_no_layout_here() -> None:
    with pytest.raises(NotSupported, match="abacus"):
        discover([*CONFIG, *ONNX], "onnx+abacus", "toy")
