"""Exported graphs against transformers on the same random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file
from smolvlm_factory import Dims, load_reference, make_random_model

from edgevlm.errors import ModelCorrupt, NotSupported, UsageError
from edgevlm.models.onnx_export import export_onnx, graph
from edgevlm.models.siglip import position_boundaries

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "smolvlm": {"variant": "smolvlm"},
    "idefics3": {
        "variant": "idefics3",
        "dims": Dims(layers=3, hidden=96, heads=6, kv_heads=3, intermediate=160, vision_layers=1),
        "image_size": 56,
        "patch_size": 14,
        "scale_factor": 2,
    },
}
N_TOKENS = 24


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"source-{request.param}")
    return make_random_model(folder, seed=7, **CONFIGURATIONS[request.param])


@pytest.fixture(scope="module")
def smolvlm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("source"), seed=8)


@pytest.fixture
def ids() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(3, 300, (1, N_TOKENS))


def session(folder: Path, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(folder / "onnx" / f"{name}.onnx", options)


def embed(folder: Path, ids: Any) -> Any:
    return session(folder, "embed_tokens").run(None, {"input_ids": ids})[0]


class Decoder:
    """A decoder session that is fed chunk by chunk, copying its cache."""

    def __init__(self, folder: Path) -> None:
        self.session = session(folder, "decoder_model_merged")
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        past = [i for i in self.session.get_inputs() if i.name.startswith("past")]
        self.names = [i.name.removeprefix("past_key_values.") for i in past]
        self.cache_shape = past[0].shape

    def empty(self, length: int = 0, batch: int = 1) -> Iterator[tuple[str, Any]]:
        _, n_heads, _, head_dim = self.cache_shape
        for name in self.names:
            yield name, np.zeros((batch, n_heads, length, head_dim), np.float32)

    def logits(self, embeddings: Any, chunks: Sequence[int]) -> Any:
        past, rows, start = dict(self.empty()), [], 0
        for count in chunks:
            end = start + count
            feeds = {
                "inputs_embeds": embeddings[:, start:end],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end)[None],
            }
            feeds |= {f"past_key_values.{name}": array for name, array in past.items()}
            outputs = ["logits", *(f"present.{name}" for name in past)]
            found, *present = self.session.run(outputs, feeds)
            past, start = dict(zip(past, present, strict=True)), end
            rows.append(found[0])
        return np.concatenate(rows)

    def logits_in_place(self, embeddings: Any, chunks: Sequence[int]) -> Any:
        """The same with one buffer as past and present, full of garbage at first."""
        buffers = {
            name: ort.OrtValue.ortvalue_from_numpy(array + 1e9)
            for name, array in self.empty(2 * N_TOKENS)
        }
        rows, start = [], 0
        for count in chunks:
            end = start + count
            binding = self.session.io_binding()
            binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeddings[:, start:end]))
            binding.bind_cpu_input("attention_mask", np.ones((1, end), np.int64))
            binding.bind_cpu_input("position_ids", np.arange(start, end)[None])
            binding.bind_output("logits")
            for name, buffer in buffers.items():
                binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
                binding.bind_ortvalue_output(f"present.{name}", buffer)
            self.session.run_with_iobinding(binding)
            rows.append(binding.get_outputs()[0].numpy()[0])
            start = end
        return np.concatenate(rows)


@pytest.mark.parametrize("attention", ["gqa", "plain"])
def test_float_logits_are_those_of_transformers(
    source: Path, tmp_path: Path, ids: Any, attention: Any
) -> None:
    export_onnx(source, tmp_path, attention=attention, last_logits_only=False)
    decoder, embeddings = Decoder(tmp_path), embed(tmp_path, ids)
    with torch.no_grad():
        expected = load_reference(source)(input_ids=torch.from_numpy(ids)).logits[0].numpy()
    assert expected.std() > 1
    for chunks in ([N_TOKENS], [10, 1, 1, N_TOKENS - 12]):
        np.testing.assert_allclose(decoder.logits(embeddings, chunks), expected, atol=1e-4)
    assert decoder.metadata["edgevlm.attention"] == attention
    assert decoder.metadata["edgevlm.shared_kv"] == ("1" if attention == "gqa" else "0")
    assert decoder.metadata["edgevlm.max_length"] == "8192"
    assert decoder.metadata["edgevlm.logits"] == "all"


def padded_images(side: int, patch: int) -> tuple[Any, Any]:
    """Tiles: whole, cut below, cut right, cut both ways inside a patch, one row of pixels."""
    pixels = np.random.default_rng(1).standard_normal((1, 5, 3, side, side), dtype=np.float32)
    mask = np.ones((1, 5, side, side), bool)
    mask[0, 1, 3 * patch :] = False
    mask[0, 2, :, patch:] = False
    mask[0, 3, 2 * patch + 1 :] = False
    mask[0, 3, :, 3 * patch - 1 :] = False
    mask[0, 4, 1:] = False
    return pixels, mask


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-4), (16, 5e-3), (8, 0.1)])
def test_image_features_are_those_of_transformers(
    source: Path, tmp_path: Path, bits: int, tolerance: float
) -> None:
    vision = json.loads((source / "config.json").read_text())["vision_config"]
    pixels, mask = padded_images(vision["image_size"], vision["patch_size"])
    export_onnx(source, tmp_path, vision_bits=bits)
    feeds = {"pixel_values": pixels, "pixel_attention_mask": mask}
    (found,) = session(tmp_path, "vision_encoder").run(["image_features"], feeds)
    with torch.no_grad():
        model = load_reference(source).model
        reference = model.get_image_features(torch.from_numpy(pixels), torch.from_numpy(mask))
    expected = torch.stack(tuple(reference.pooler_output)).numpy().reshape(found.shape)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("n_per_side", [4, 8, 14, 24, 27, 32])
def test_fractions_fall_into_the_rows_that_torch_gives(n_per_side: int) -> None:
    expected = torch.arange(1 / n_per_side, 1.0, 1 / n_per_side)
    boundaries = position_boundaries(n_per_side)
    for count in range(1, n_per_side + 1):
        fractions = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor([count]))
        fractions = torch.clamp(fractions, max=1.0 - 1e-6)
        found = (fractions.numpy()[:, None] >= boundaries).sum(axis=1)
        rows = torch.bucketize(fractions, expected, right=True)
        np.testing.assert_array_equal(found, rows.numpy())


def test_one_buffer_for_past_and_present_changes_nothing(
    smolvlm_source: Path, tmp_path: Path, ids: Any
) -> None:
    export_onnx(smolvlm_source, tmp_path, decoder_bits=4)
    decoder, embeddings = Decoder(tmp_path), embed(tmp_path, ids)
    chunks = [10, 1, 1, N_TOKENS - 12]
    copied = decoder.logits(embeddings, chunks)
    np.testing.assert_array_equal(decoder.logits_in_place(embeddings, chunks), copied)


@pytest.mark.parametrize("attention", ["gqa", "plain"])
def test_last_logits_are_the_last_of_all_logits(
    smolvlm_source: Path, tmp_path: Path, ids: Any, attention: Any
) -> None:
    rows = {}
    for last_only in (True, False):
        folder = tmp_path / str(last_only)
        export_onnx(smolvlm_source, folder, attention=attention, last_logits_only=last_only)
        rows[last_only] = Decoder(folder).logits(embed(folder, ids), [N_TOKENS])
    assert rows[True].shape[0] == 1
    np.testing.assert_allclose(rows[True][0], rows[False][-1], atol=1e-5)
    assert Decoder(tmp_path / "True").metadata["edgevlm.logits"] == "last"


@pytest.mark.parametrize(("attention", "side"), [("plain", "left"), ("gqa", "right")])
def test_padded_batch(
    smolvlm_source: Path, tmp_path: Path, ids: Any, attention: Any, side: str
) -> None:
    export_onnx(smolvlm_source, tmp_path, attention=attention, last_logits_only=False)
    decoder, n_short = Decoder(tmp_path), 9
    real = slice(N_TOKENS - n_short, None) if side == "left" else slice(0, n_short)
    batch, mask, positions = np.repeat(ids, 2, 0), np.zeros((2, N_TOKENS), np.int64), ids * 0
    positions = np.repeat(np.arange(N_TOKENS)[None], 2, 0)
    batch[1, real], mask[0], mask[1, real] = ids[0, :n_short], 1, 1
    positions[1, real] = np.arange(n_short)
    feeds = {
        "inputs_embeds": embed(tmp_path, batch),
        "attention_mask": mask,
        "position_ids": positions,
    }
    feeds |= {f"past_key_values.{name}": array for name, array in decoder.empty(batch=2)}
    (found,) = decoder.session.run(["logits"], feeds)
    with torch.no_grad():
        model = load_reference(smolvlm_source)
        expected = model(input_ids=torch.from_numpy(ids)).logits[0].numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    np.testing.assert_allclose(found[1, real], expected[:n_short], atol=1e-4)


@pytest.mark.parametrize(("bits", "closeness"), [(8, 0.999), (4, 0.97)])
@pytest.mark.parametrize("attention", ["gqa", "plain"])
def test_few_bits_stay_close(
    smolvlm_source: Path, tmp_path: Path, ids: Any, attention: Any, bits: int, closeness: float
) -> None:
    export_onnx(
        smolvlm_source, tmp_path, attention=attention, decoder_bits=bits, last_logits_only=False
    )
    found = Decoder(tmp_path).logits(embed(tmp_path, ids), [N_TOKENS])
    with torch.no_grad():
        model = load_reference(smolvlm_source)
        expected = model(input_ids=torch.from_numpy(ids)).logits[0].numpy()
    correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    assert closeness < correlation < 0.99999


def test_tied_embeddings_serve_as_head(smolvlm_source: Path, tmp_path: Path, ids: Any) -> None:
    source = tmp_path / "tied"
    shutil.copytree(smolvlm_source, source)
    config = json.loads((source / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    export_onnx(source, tmp_path / "onnx", last_logits_only=False)
    found = Decoder(tmp_path / "onnx").logits(embed(tmp_path / "onnx", ids), [N_TOKENS])
    with torch.no_grad():
        expected = load_reference(source)(input_ids=torch.from_numpy(ids)).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


def test_same_source_same_bytes_and_files_copied(smolvlm_source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_onnx(smolvlm_source, tmp_path / name, decoder_bits=4, vision_bits=16)
    files = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert {p.name for p in files} >= {
        "vision_encoder.onnx",
        "embed_tokens.onnx",
        "decoder_model_merged.onnx",
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_large_weights_lie_beside_the_graph(
    smolvlm_source: Path, tmp_path: Path, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(smolvlm_source, tmp_path / "inline")
    monkeypatch.setattr(graph, "MAX_INLINE_BYTES", 10_000)
    export_onnx(smolvlm_source, tmp_path / "beside")
    beside = tmp_path / "beside" / "onnx" / "decoder_model_merged.onnx"
    assert beside.stat().st_size < 200_000
    assert beside.with_name("decoder_model_merged.onnx_data").stat().st_size > 300_000
    for name in ("decoder_model_merged", "embed_tokens", "vision_encoder"):
        onnx.checker.check_model(beside.with_name(f"{name}.onnx"))
    found, expected = (
        Decoder(tmp_path / name).logits(embed(tmp_path / name, ids), [N_TOKENS])
        for name in ("beside", "inline")
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "llava"}, NotSupported),
        ({"text_config": {"rope_scaling": {"rope_type": "yarn", "factor": 2}}}, NotSupported),
        ({"text_config": {"hidden_act": "gelu"}}, NotSupported),
        ({"vision_config": {"hidden_act": "relu"}}, NotSupported),
        ({"text_config": {"num_hidden_layers": 9}}, ModelCorrupt),
        ({"text_config": {"hidden_size": 128}}, ModelCorrupt),
        ({"text_config": {"hidden_size": "wide"}}, ModelCorrupt),
        ({"vision_config": None}, ModelCorrupt),
    ],
)
def test_refuses_configurations_it_can_not_write(
    smolvlm_source: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    shutil.copytree(smolvlm_source, tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(error):
        export_onnx(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "{"])
def test_refuses_a_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        export_onnx(tmp_path, tmp_path / "target")


def test_refuses_missing_weights_and_odd_widths(smolvlm_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 bits"):
        export_onnx(smolvlm_source, tmp_path, decoder_bits=5)
    with pytest.raises(UsageError, match="4 bits"):
        export_onnx(smolvlm_source, tmp_path, vision_bits=4)
    shutil.copytree(smolvlm_source, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    with pytest.raises(ModelCorrupt, match="safetensors"):
        export_onnx(tmp_path / "source", tmp_path / "target")
    for name in ("../model.safetensors", "C:model.safetensors", "", 5):
        index = {"weight_map": {"a": name}}
        (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelCorrupt, match="no files of its folder"):
            export_onnx(tmp_path / "source", tmp_path / "target")
