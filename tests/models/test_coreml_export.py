"""Core ML packages as they are written: few bits against the same weights dequantised, refusals,
and a folder that is the old or the new. The interpreter runs what was saved."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_factory import CoreMLParts
from coreml_interpreter import InterpretedPackage
from lora_factory import random_lora
from recorder import Recorder
from safetensors.numpy import load_file, save_file
from smolvlm_factory import Dims, load_reference, make_random_model

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import EdgeVLMError, ModelCorrupt, NoSpace, NotSupported, UsageError
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.coreml_export import convert, export, export_coreml
from edgevlm.models.coreml_export.decoder import load_decoder
from edgevlm.models.vlm_config import read_config

# Wide enough that every linear layer is worth rounding; below 2,048 weights none is.
WIDE = Dims(hidden=128, intermediate=256, vision_hidden=64, vision_intermediate=128)
LOGITS = 0.05  # of logits with a deviation of 3; the packages compute at 16 bits
TEXT, VISION = "model.text_model.", "model.vision_model.encoder."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("source"), seed=11, dims=WIDE)


@pytest.fixture(scope="module")
def few_bits(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-bits")
    export_coreml(source, folder, bits=4, vision_bits=8, context_length=512)
    return folder


def rounded_weights(folder: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Bits and dequantised weights [out, in] of each rounded layer, by the checkpoint's names."""
    found = {}
    for part, prefix in (("decoder", TEXT), ("vision_encoder", VISION)):
        package = InterpretedPackage(folder / "coreml" / f"{part}.mlpackage")
        for op in package.function.operations:
            if op.op_type == "constexpr_blockwise_shift_scale":
                bits = 4 if np.abs(op.inputs["data"].val).max() <= 8 else 8
                name = op.outputs[0].name.removesuffix("_weight_to_fp16_quantized")
                found[prefix + name] = (bits, package._constants[op.outputs[0].name])
    return found


def lookup(name: str) -> str:
    """The rounded layer's name of a checkpoint's tensor: coremltools has no dots in names."""
    special = {
        "lm_head.weight": f"{TEXT}lm_head",
        "model.connector.modality_projection.proj.weight": f"{VISION}projection",
    }
    for prefix in (TEXT, VISION):
        if name.startswith(prefix):
            return prefix + name.removeprefix(prefix).removesuffix(".weight").replace(".", "_")
    return special.get(name, name)


def test_what_is_rounded_and_how_far(source: Path, few_bits: Path) -> None:
    rounded = rounded_weights(few_bits)
    tensors = load_file(source / "model.safetensors")
    seen = set()
    for name, weight in tensors.items():
        if lookup(name) not in rounded:
            continue
        seen.add(lookup(name))
        bits, found = rounded[lookup(name)]
        assert bits == (4 if name.startswith(TEXT) else 8), name
        blocks = np.abs(weight).reshape(len(weight), -1, 32).max(-1)
        # To the nearest step, of scales and quotients that fp16 rounds.
        step = np.repeat(blocks / (7 if bits == 4 else 127), 32, axis=1)
        assert (np.abs(found - weight) <= 0.65 * step).all(), name
    # Seven products a decoder layer, six a vision layer, the head and the projector.
    assert seen == set(rounded)
    assert len(rounded) == 2 * 7 + 2 * 6 + 2


@pytest.fixture(scope="module")
def dequantised(source: Path, few_bits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers with the weights that the packages and the table hold."""
    folder = tmp_path_factory.mktemp("dequantised")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    rounded = rounded_weights(few_bits)
    for name in tensors:
        if lookup(name) in rounded:
            tensors[name] = rounded[lookup(name)][1].astype(np.float32)
    table = np.load(few_bits / "coreml" / "embed_tokens.npy")
    scales = np.repeat(table["scales"].astype(np.float32), 32, axis=1)
    tensors[f"{TEXT}embed_tokens.weight"] = table["values"] * scales
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return load_reference(folder)


def test_4_bits_compute_what_the_weights_dequantised_do(few_bits: Path, dequantised: Any) -> None:
    parts = CoreMLParts(few_bits)
    picture = np.random.default_rng(1).integers(0, 256, (60, 150, 3), dtype=np.uint8)
    prompt = parts.prompt([("user", [picture, "What is in this picture?"])])
    (image,) = prompt.images
    with torch.no_grad():
        pixels = torch.from_numpy(image.pixel_values)[None]
        features = dequantised.model.get_image_features(pixels).pooler_output
        rows = torch.cat(list(features)).reshape(image.n_tokens, -1)
    found = parts.vision.encode(image, Cancel())
    np.testing.assert_allclose(found, rows.numpy(), rtol=0, atol=0.02)
    steps = 24
    ids, logits, _ = parts.answer(parts.context(), prompt, steps)
    embed = dequantised.get_input_embeddings()
    pieces = [
        embed(torch.tensor(part)) if isinstance(part, tuple) else rows[part.start :][: part.count]
        for part in [*prompt.parts, tuple(ids[:-1])]
    ]
    with torch.no_grad():
        expected = dequantised(inputs_embeds=torch.cat(pieces)[None]).logits[0, -steps:].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)
    assert ids == expected.argmax(-1).tolist()


def test_an_adapter_over_4_bits(few_bits: Path, dequantised: Any) -> None:
    language = CoreMLParts(few_bits).language
    lora = random_lora(few_bits, rank=16)
    context = language.new_context()
    context.use_adapters({language.load_adapter(lora): 0.5})
    ids = np.arange(3, 30)
    found = context.extend([ids], Cancel())
    merged = copy.deepcopy(dequantised)
    with torch.no_grad():
        for name, update in lora.decoder.items():
            weight = merged.model.text_model.get_submodule(name).weight
            weight += 0.5 * torch.from_numpy(update.b) @ torch.from_numpy(update.a)
        base, expected = (
            each(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].numpy()
            for each in (dequantised, merged)
        )
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGITS)
    assert np.abs(expected - base).max() > 10 * LOGITS


def test_a_tables_8_bits(source: Path, few_bits: Path) -> None:
    weight = load_file(source / "model.safetensors")[f"{TEXT}embed_tokens.weight"]
    path = few_bits / "coreml" / "embed_tokens.npy"
    assert path.stat().st_size < weight.size * 1.1
    rows = CoreMLParts(few_bits).language.embed([np.arange(len(weight))])
    steps = np.repeat(np.abs(weight).reshape(len(weight), -1, 32).max(-1) / 127, 32, axis=1)
    assert (np.abs(rows - weight) <= 0.65 * steps).all()


def test_files_and_sizes(source: Path, few_bits: Path) -> None:
    names = {path.name for path in few_bits.iterdir()}
    assert {"coreml", "config.json", "tokenizer.json", "preprocessor_config.json"} <= names
    assert "model.safetensors" not in names
    assert (few_bits / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    package = InterpretedPackage(few_bits / "coreml" / "decoder.mlpackage")
    states = {name: state.shape for name, state in package.new_state().items()}
    assert states["k_cache"] == states["v_cache"] == (2, 1, 2, 512, 32)
    assert len(states) == 2 + 2 * 7
    assert (states["lora_a_down_proj"], states["lora_b_k_proj"]) == ((2, 32, 256), (2, 32, 64))
    files = [path for path in (few_bits / "coreml").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_biases_are_the_checkpoints(source: Path, tmp_path: Path, tied: bool) -> None:
    """As a torch module: which tensors a parameter is read from, not how it is converted."""
    folder = shutil.copytree(source, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    if tied:
        del tensors["lm_head.weight"]
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    config["text_config"]["attention_bias"] = config["text_config"]["mlp_bias"] = True
    generator = np.random.default_rng(0)
    for name in [n for n in tensors if n.startswith(f"{TEXT}layers") and "_proj" in n]:
        shape = len(tensors[name])
        bias = generator.standard_normal(shape, dtype=np.float32)
        tensors[name.replace(".weight", ".bias")] = bias
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    reference = load_reference(folder)
    decoder = load_decoder(Checkpoint(folder), read_config(folder), 64)
    ids = torch.arange(3, 15)[None]
    mask = torch.full((12, 12), -3e4).triu(1)[None, None]
    with torch.no_grad():
        expected = reference(input_ids=ids).logits[0, -1]
        found = decoder(reference.get_input_embeddings()(ids), mask)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_into_its_own_source_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """8 bits, in place of an older conversion; told through `progress` and nowhere else."""
    folder = make_random_model(tmp_path / "model", dims=Dims(layers=1, vision_layers=1))
    (folder / "coreml").mkdir()
    (folder / "coreml" / "old").write_text("")
    capfd.readouterr()
    before = {path.name for path in folder.iterdir()}
    progress = Recorder()
    # A limit of the model's own above the asked one, which is the least.
    export_coreml(folder, folder, bits=8, context_length=32, progress=progress)
    assert capfd.readouterr() == ("", "")
    assert [note.split()[-1] for note in progress.notes] == ["ML", "ML", "bits"]
    assert {path.name for path in folder.iterdir()} == before
    assert {path.name for path in (folder / "coreml").iterdir()} == {
        "decoder.mlpackage",
        "vision_encoder.mlpackage",
        "embed_tokens.npy",
    }
    parts = CoreMLParts(folder)
    assert parts.language.context_length == parts.language.chunk == 32
    assert len(parts.answer(parts.context(), parts.prompt([("user", ["Hi"])]), 3)[0]) == 3


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (RuntimeError("the converter broke"), RuntimeError),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_conversion_that_fails_leaves_what_was_there(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    error: type[BaseException],
) -> None:
    def fail(*arguments: Any) -> None:
        raise failure

    monkeypatch.setattr(convert, "convert_vision", fail)
    target = tmp_path / "target"
    (target / "coreml").mkdir(parents=True)
    (target / "coreml" / "old").write_text("kept")
    with pytest.raises(error):
        export_coreml(source, target)
    assert [path.name for path in target.iterdir()] == ["coreml"]
    assert (target / "coreml" / "old").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"bits": 5}, "decoder can't be written at 5 bits"),
        ({"vision_bits": 4}, "vision can't be written at 4 bits"),
        ({"context_length": 1000}, "can't be 1000 positions long"),
        ({"context_length": 0}, "can't be 0 positions long"),
        ({"max_rank": -1}, "can't have a rank of -1"),
    ],
)
def test_refuses_what_it_can_not_write(
    source: Path, tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        export_coreml(source, tmp_path / "target", **arguments)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("missing", [("torch",), ("coremltools",), ("torch", "coremltools")])
def test_names_the_extras_it_lacks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name in missing else found(name))
    with pytest.raises(NotSupported, match=" and ".join(missing)) as caught:
        export_coreml(source, tmp_path / "target")
    assert caught.value.hint == "pip install 'edgevlm[coreml,convert]'"


def drop_tensor(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return damage


def set_config(part: str, **values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (config[part] if part else config).update(values)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder / "config.json").unlink(), ModelCorrupt),
        (lambda folder: (folder / "model.safetensors").unlink(), ModelCorrupt),
        (cut_weights, ModelCorrupt),
        (drop_tensor(f"{TEXT}norm.weight"), ModelCorrupt),
        (drop_tensor(f"{TEXT}embed_tokens.weight"), ModelCorrupt),
        (drop_tensor("model.vision_model.embeddings.position_embedding.weight"), ModelCorrupt),
        (set_config("text_config", intermediate_size=300), ModelCorrupt),
        (set_config("text_config", num_attention_heads=3), ModelCorrupt),
        (set_config("text_config", num_hidden_layers=0), ModelCorrupt),
        (set_config("text_config", max_position_embeddings=16), ModelCorrupt),
        (set_config("vision_config", patch_size=0), ModelCorrupt),
        (set_config("vision_config", image_size=72), ModelCorrupt),
        (set_config("", scale_factor=3), ModelCorrupt),
        (set_config("", model_type="llava"), NotSupported),
    ],
)
def test_a_source_that_is_no_model(
    source: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[EdgeVLMError],
) -> None:
    folder = shutil.copytree(source, tmp_path / "source")
    damage(folder)
    with pytest.raises(error):
        export_coreml(folder, tmp_path / "target")
    assert list(tmp_path.glob("target/*")) == []
