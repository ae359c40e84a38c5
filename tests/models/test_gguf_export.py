"""Exported GGUF pairs, run by llama.cpp, against transformers on the same random weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from smolvlm_factory import Dims, load_reference, make_random_model
from tokenizers import Tokenizer

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import ModelCorrupt, NotSupported, RuntimeFailed, UsageError
from edgevlm.models.gguf_export import export_gguf, quantizer, stages
from edgevlm.models.layouts import discover
from edgevlm.models.progress import Silent
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel
from edgevlm.runtimes.llamacpp_vision import LlamaCppVisionEncoder
from edgevlm.runtimes.llamacpp_vocabulary import Vocabulary
from edgevlm.runtimes.llamacpp_weights import load_weights

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "smolvlm": {"variant": "smolvlm"},
    # Rows of 256 weights, which is what a block of the 4-bit K types holds.
    "idefics3": {
        "variant": "idefics3",
        "dims": Dims(hidden=256, heads=8, kv_heads=2, intermediate=512, vision_layers=1),
        "image_size": 56,
        "patch_size": 14,
        "scale_factor": 2,
    },
}
IDS = np.random.default_rng(0).integers(3, 300, 24)


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"source-{request.param}")
    return make_random_model(folder, seed=7, **CONFIGURATIONS[request.param])


@pytest.fixture
def copy(smolvlm_source: Path, tmp_path: Path) -> Path:
    """A source that a test may spoil."""
    return Path(shutil.copytree(smolvlm_source, tmp_path / "source"))


class Watched(Silent):
    """Keeps what was begun and how far it came; stops at a label's beginning if told to."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.begun: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self._stop_at = stop_at

    def start(self, total: int, label: str) -> None:
        self._label = label
        self.begun[label], self.done[label] = total, 0

    def advance(self, n: int) -> None:
        if self._stop_at and self._label.startswith(self._stop_at):
            raise KeyboardInterrupt
        self.done[self._label] += n


def files_of(folder: Path) -> ModelFiles:
    layout = discover([path.name for path in folder.iterdir()], "llamacpp", "the model")
    roles = {role: folder / path for role, path in layout.roles.items()}
    return ModelFiles("exported", folder, roles, layout.quantization)


def logits(folder: Path) -> Any:
    model = LlamaCppLanguageModel(files_of(folder), LoadOptions(threads=1))
    return model.new_context().extend([IDS], Cancel())


@cache
def expected_logits(source: Path) -> Any:
    with torch.no_grad():
        return load_reference(source)(input_ids=torch.tensor(IDS[None])).logits[0, -1].numpy()


def change(folder: Path, name: str, tensor: np.ndarray | None) -> None:
    """Replace a tensor of the checkpoint, or remove it."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(("width", "tolerance"), [("f32", 1e-4), ("f16", 2e-2)])
def test_logits_are_the_references(
    source: Path, tmp_path: Path, width: str, tolerance: float
) -> None:
    export_gguf(source, tmp_path, quantize=width)
    np.testing.assert_allclose(logits(tmp_path), expected_logits(source), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 2e-3), (16, 5e-3), (8, 0.2)])
def test_embeddings_are_the_references(
    source: Path, tmp_path: Path, bits: int, tolerance: float
) -> None:
    made = export_gguf(source, tmp_path, quantize="f16", vision_bits=bits)
    assert made.vision_encoder.name.endswith({32: "-F32", 16: "-F16", 8: "-Q8_0"}[bits] + ".gguf")
    side = json.loads((source / "config.json").read_text())["vision_config"]["image_size"]
    rgb = np.random.default_rng(1).integers(0, 256, (2, 3, side, side))
    pixels = (rgb / 127.5 - 1).astype(np.float32)
    with torch.no_grad():
        features = load_reference(source).model.get_image_features(torch.tensor(pixels)[None])
    expected = torch.cat(list(features.pooler_output)).numpy()
    encoder = LlamaCppVisionEncoder(files_of(tmp_path), LoadOptions(threads=1))
    got = encoder.encode(ImageInput(pixels, None, (0, 0), len(expected), ""), Cancel())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_texts_are_read_as_the_source_reads_them(source: Path, tmp_path: Path) -> None:
    made = export_gguf(source, tmp_path, quantize="f32")
    vocabulary = Vocabulary(load_weights(made.decoder))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in (
        "Hello there 1987, what's  this?\n\n x",
        " \u00e9\u6f22\u5b57 \U0001f388",
        "a\tb  ",
    ):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode_letters(text) == expected
        assert vocabulary.decoder.decode(expected) == tokenizer.decode(expected) == text
    assert tokenizer.token_to_id("<end_of_utterance>") in vocabulary.stop_ids
    assert vocabulary.begin is None
    assert vocabulary.named_tokens()["bos_token"] == "<|im_start|>"


@pytest.mark.parametrize("kind", ["q4_k_m", "q4_0", "q4_1", "q8_0"])
def test_quantizations(source: Path, tmp_path: Path, kind: str) -> None:
    progress = Watched()
    made = export_gguf(source, tmp_path, quantize=kind, name="cam", progress=progress)
    assert made.decoder.name == f"cam-{kind.upper()}.gguf"
    assert files_of(tmp_path).quantization == {"decoder": kind, "vision": "f16"}
    small_rows = "smolvlm" in source.name
    main_type = {"q4_k_m": "Q5_0" if small_rows else "Q4_K"}.get(kind, kind.upper())
    assert next(iter(made.decoder_types)) == main_type
    assert made.decoder_types["F32"] == 5  # the norms
    got, expected = logits(tmp_path), expected_logits(source)
    assert np.corrcoef(got, expected)[0, 1] > (0.999 if kind == "q8_0" else 0.96)
    assert progress.begun == progress.done
    assert [label.split()[0] for label in progress.begun] == ["Writing", "Writing", "Quantizing"]
    left = {path.name for path in tmp_path.iterdir()}
    configuration = {path.name for path in source.iterdir()} - {"model.safetensors"}
    assert left == configuration | {made.decoder.name, made.vision_encoder.name}


def test_what_is_done_is_not_done_again(smolvlm_source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_gguf(smolvlm_source, tmp_path, name="cam", progress=Watched(stop_at="Quantizing"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mmproj-cam-F16.gguf", "cam-F16.gguf.work"}
    again = Watched()
    first = export_gguf(smolvlm_source, tmp_path, name="cam", progress=again)
    assert list(again.begun) == ["Quantizing cam-Q4_K_M.gguf"]
    nothing = Watched()
    assert export_gguf(smolvlm_source, tmp_path, name="cam", progress=nothing) == first
    assert not nothing.begun


def test_another_source_is_done_anew(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    export_gguf(copy, target, quantize="f32")
    before = logits(target)
    change(copy, "model.text_model.norm.weight", np.full(64, 2, np.float32))
    progress = Watched()
    export_gguf(copy, target, quantize="f32", progress=progress)
    assert len(progress.begun) == 2
    assert not np.allclose(logits(target), before)


@pytest.mark.parametrize("stage", ["Writing mmproj", "Writing cam", "Quantizing"])
def test_an_interrupted_stage_leaves_no_file_that_looks_whole(
    smolvlm_source: Path, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_gguf(smolvlm_source, tmp_path, name="cam", progress=Watched(stop_at=stage))
    with pytest.raises(ModelCorrupt):
        files_of(tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_what_the_quantizer_says_when_it_fails(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_gguf(smolvlm_source, tmp_path, quantize="f32", name="cam")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((tmp_path / "cam-F32.gguf").read_bytes()[:20_000])
    with pytest.raises(RuntimeFailed, match=r"could not write small\.gguf: .*\w"):
        quantizer.quantize(broken, tmp_path / "small.gguf", "q4_0", Silent())
    assert not (tmp_path / "small.gguf").exists()


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    dims = Dims(layers=6, hidden=256, heads=4, kv_heads=4, intermediate=1024)
    source = make_random_model(tmp_path / "source", dims=dims)
    weights, largest = (source / "model.safetensors").stat().st_size, 1024 * 256 * 4
    tracemalloc.start()
    export_gguf(source, tmp_path / "target", quantize="f16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * largest < weights / 4


@pytest.mark.parametrize(
    "name",
    [
        "model.text_model.layers.1.self_attn.k_proj.weight",
        "model.vision_model.encoder.layers.0.mlp.fc1.bias",
        "model.connector.modality_projection.proj.weight",
    ],
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(copy: Path, name: str) -> None:
    target = copy.parent / "target"
    for tensor in (np.zeros((3, 5), np.float32), None):
        change(copy, name, tensor)
        with pytest.raises(ModelCorrupt, match=name):
            export_gguf(copy, target)
        assert not list(target.glob(f"{copy.name}*.gguf"))


def test_embeddings_serve_as_the_head_where_the_model_says_so(copy: Path) -> None:
    target = copy.parent / "target"
    change(copy, "lm_head.weight", None)
    config = json.loads((copy / "config.json").read_text())
    change_json(
        copy / "config.json",
        tie_word_embeddings=True,
        text_config=config["text_config"] | {"tie_word_embeddings": True},
    )
    export_gguf(copy, target, quantize="f32")
    np.testing.assert_allclose(logits(target), expected_logits(copy), rtol=0, atol=1e-4)


def test_numbers_beyond_16_bits_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    n_vocab = config["text_config"]["vocab_size"]
    change(copy, "lm_head.weight", np.full((n_vocab, 64), 1e6, np.float32))
    with pytest.raises(NotSupported, match=r"output\.weight"):
        export_gguf(copy, copy.parent / "target")
    export_gguf(copy, copy.parent / "target", quantize="f32")


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
LLAMA_3 = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("gpt-2", [BYTE_LEVEL | {"use_regex": True}]),
        ("llama-bpe", [LLAMA_3, BYTE_LEVEL | {"use_regex": False}]),
    ],
)
def test_other_ways_to_part_words(copy: Path, name: str, steps: list[dict[str, Any]]) -> None:
    path = copy / "tokenizer.json"
    change_json(path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    made = export_gguf(copy, copy.parent / "target", quantize="f32")
    assert GGUFReader(made.decoder).get_field("tokenizer.ggml.pre").contents() == name
    vocabulary = Vocabulary(load_weights(made.decoder))
    tokenizer = Tokenizer.from_file(str(path))
    for text in ("Which of them,\n in 1987?\n\n  Don't  ", "(picture) the cat's 405"):
        assert vocabulary.encode_letters(text) == tokenizer.encode(text).ids


def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(copy: Path) -> None:
    change_json(copy / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(NotSupported, match="Whitespace"):
        export_gguf(copy, copy.parent / "target")


def test_a_token_without_an_embedding_is_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["added_tokens"].append(raw["added_tokens"][-1] | {"id": 5000, "content": "<far>"})
    path.write_text(json.dumps(raw))
    with pytest.raises(ModelCorrupt, match="5000"):
        export_gguf(copy, copy.parent / "target")


def test_other_widths_are_refused(smolvlm_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q2_k"):
        export_gguf(smolvlm_source, tmp_path, quantize="q2_k")
    with pytest.raises(UsageError, match="4 bits"):
        export_gguf(smolvlm_source, tmp_path, vision_bits=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "extra"), [("gguf", "convert"), ("llama_cpp", "llamacpp")])
def test_a_package_that_is_not_there(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "edgevlm.models.gguf_export.export.find_spec",
        lambda name: None if name == package else found(name),
    )
    with pytest.raises(NotSupported) as refusal:
        export_gguf(smolvlm_source, tmp_path)
    assert refusal.value.hint == f"pip install 'edgevlm[{extra}]'"
    assert refusal.value.exit_code == 4


def test_a_full_disk_is_said_before_the_work(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(stages, "require_space", lambda folder, n, what: asked.append(n))
    made = export_gguf(smolvlm_source, tmp_path, quantize="f32", vision_bits=32)
    sizes = [path.stat().st_size for path in (made.vision_encoder, made.decoder)]
    assert all(0.8 * size < n < size for n, size in zip(asked, sizes, strict=True))
