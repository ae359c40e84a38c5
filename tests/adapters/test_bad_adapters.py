"""Adapters that are wrong, each refused for its own reason before a runtime sees it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from lora_factory import SMALL, TINY, random_lora, read_tensors, write_peft, write_tensors

from edgevlm.adapters.base import Base, check_fits
from edgevlm.adapters.manifest import (
    MANIFEST_NAME,
    AdapterFile,
    DeclaredBase,
    Manifest,
    manifest_of,
    write_manifest,
)
from edgevlm.adapters.peft import WEIGHTS_NAME, read_peft
from edgevlm.adapters.peft_config import CONFIG_NAME
from edgevlm.devices.shape import DecoderShape
from edgevlm.errors import AdapterCorrupt, AdapterMismatch, EdgeVLMError, NotSupported
from edgevlm.models.receive import hash_file

Damage: TypeAlias = Callable[[Path], None]
Q0 = "base_model.model.model.text_model.layers.0.self_attn.q_proj"
V1 = "base_model.model.model.text_model.layers.1.self_attn.v_proj"


def config(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def without(field: str) -> Damage:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / CONFIG_NAME).read_text())
        del fields[field]
        (folder / CONFIG_NAME).write_text(json.dumps(fields))

    return damage


def config_text(text: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        (folder / CONFIG_NAME).write_bytes(content)

    return damage


def tensor(name: str, array: Any, dtype: Any = np.float32) -> Damage:
    """One more tensor, or another in place of one; None takes it away."""

    def damage(folder: Path) -> None:
        tensors = read_tensors(folder / WEIGHTS_NAME)
        if array is None:
            del tensors[name]
        else:
            tensors[name] = np.asarray(array, dtype)
        write_tensors(folder / WEIGHTS_NAME, tensors)

    return damage


def number(value: float, name: str = f"{Q0}.lora_A.weight") -> Damage:
    def damage(folder: Path) -> None:
        tensors = read_tensors(folder / WEIGHTS_NAME)
        tensors[name][3, 5] = value
        write_tensors(folder / WEIGHTS_NAME, tensors)

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of the weights, and nothing of their bytes."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS_NAME).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        fields = json.loads(data[8:end])
        change(fields)
        text = json.dumps(fields).encode()
        new = len(text).to_bytes(8, "little") + text + data[end:]
        (folder / WEIGHTS_NAME).write_bytes(new)

    return damage


def retyped(dtype: str, shape: list[int]) -> Damage:
    return header(lambda h: h[f"{Q0}.lora_A.weight"].update(dtype=dtype, shape=shape))


def weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / WEIGHTS_NAME
        path.write_bytes(change(path.read_bytes()))

    return damage


def missing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def both(first: Damage, second: Damage) -> Damage:
    def damage(folder: Path) -> None:
        first(folder)
        second(folder)

    return damage


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")


def torch_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return file.getvalue()


def overlapping(fields: dict[str, Any]) -> None:
    """Every A where the first one is."""
    entries = [e for name, e in fields.items() if name.endswith("lora_A.weight")]
    for i in range(400):
        fields[f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight"] = entries[0]
        fields[f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_B.weight"] = entries[0]


CORRUPT: dict[str, tuple[Damage, str]] = {
    # files
    "no configuration": (missing(CONFIG_NAME), "no file adapter_config.json"),
    "no weights": (missing(WEIGHTS_NAME), "no file adapter_model.safetensors"),
    "a folder as configuration": (as_folder(CONFIG_NAME), "no file"),
    "a folder as weights": (as_folder(WEIGHTS_NAME), "no file"),
    "a pickle renamed": (weights(lambda _: torch_archive()), "holds a pickle"),
    "an old pickle renamed": (weights(lambda _: pickle.dumps({}, 2) + bytes(99)), "holds a pickle"),
    "empty weights": (weights(lambda _: b""), "shorter than its header"),
    "weights cut in the header": (weights(lambda data: data[:100]), "longer than the file"),
    "weights cut in a tensor": (weights(lambda data: data[:-1]), "does not fit its place"),
    "weights that are text": (weights(lambda _: b"Not found. " * 9), "header is too long"),
    "a header that is no JSON": (weights(lambda d: d[:8] + b"\xff" + d[9:]), "not JSON"),
    "a header without tensors": (header(dict.clear), "no tensors"),
    # the configuration
    "an empty configuration": (config_text(""), "can't be read"),
    "a configuration in UTF-16": (config_text("{}".encode("utf-16")), "can't be read"),
    "a configuration that is a list": (config_text("[]"), "not a JSON object"),
    "a configuration nested too deep": (config_text("[" * 200_000), "nested too deep"),
    "a huge configuration": (config_text(" " * 2**21), "larger than"),
    "NaN as alpha": (config_text('{"peft_type": "LORA", "lora_alpha": NaN}'), "NaN"),
    "no type": (without("peft_type"), "peft_type"),
    "a number as type": (config(peft_type=3), "peft_type"),
    "no rank": (without("r"), "'r'"),
    "rank 0": (config(r=0), "'r'"),
    "a negative rank": (config(r=-8), "'r'"),
    "a fraction as rank": (config(r=8.0), "'r'"),
    "true as rank": (config(r=True), "'r'"),
    "a rank over the limit": (config(r=513), "'r'"),
    "another rank than the tensors'": (config(r=4), "the configuration says 4"),
    "no alpha": (without("lora_alpha"), "'lora_alpha'"),
    "a text as alpha": (config(lora_alpha="16"), "'lora_alpha'"),
    "an endless alpha": (
        config_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 1e999}'),
        "alpha",
    ),
    "an alpha of 400 digits": (config(lora_alpha=10**400), "'lora_alpha'"),
    "a text as rsLoRA": (config(use_rslora="yes"), "'use_rslora'"),
    "a list as rank pattern": (config(rank_pattern=[["q_proj", 8]]), "'rank_pattern'"),
    "rank 0 in a pattern": (config(rank_pattern={"q_proj": 0}), "'rank_pattern'"),
    "a pattern with another rank": (config(rank_pattern={"v_proj": 2}), "says 2"),
    "a text in the alpha pattern": (config(alpha_pattern={"q_proj": "1"}), "'alpha_pattern'"),
    "a pattern that is open": (config(rank_pattern={"(q_proj": 8}), "does not close"),
    "a pattern with flags": (config(target_modules="(?i).*Q_proj"), "can't be matched"),
    "a pattern without an end": (
        config(target_modules="(" * 30 + ".?" + "){40}" * 30 + "x"),
        "too long to match",
    ),
    "an endless pattern": (config(target_modules="a" * 50_000), "longer than"),
    "a number as targets": (config(target_modules=3), "'target_modules'"),
    "numbers as targets": (config(target_modules=[1, 2]), "'target_modules'"),
    "targets that leave a tensor out": (config(target_modules=["q_proj"]), "does not name"),
    "a tensor that is excluded": (config(exclude_modules=["v_proj"]), "does not name"),
    "a layer that is not transformed": (
        config(target_modules=["q_proj", "v_proj"], layers_to_transform=[0]),
        "does not name",
    ),
    "a text as layers": (config(target_modules=["q_proj"], layers_to_transform="0"), "layers"),
    "a control character in the base": (config(base_model_name_or_path="a\x1b[2Jb"), "printed"),
    "an object as first weights": (config(init_lora_weights={}), "init_lora_weights"),
    # the tensors
    "a module without A": (tensor(f"{V1}.lora_A.weight", None), "no lora_A"),
    "a module without B": (tensor(f"{V1}.lora_B.weight", None), "no lora_B"),
    "a tensor of no LoRA": (tensor("model.norm.weight", [1.0]), "belongs to no LoRA"),
    "a tensor with a path as name": (
        tensor("../../etc/passwd.lora_A.weight", [[1.0]]),
        "belongs to no LoRA",
    ),
    "a tensor with a control character": (
        tensor("layers.\x1b[2J.lora_A.weight", [[1.0]]),
        "belongs to no LoRA",
    ),
    "an A twice": (tensor(f"{Q0}.lora_A.default.weight", np.zeros((8, 64))), "twice"),
    "a module under two names": (
        both(
            tensor("model.layers.0.self_attn.q_proj.lora_A.weight", np.zeros((8, 64))),
            tensor("model.layers.0.self_attn.q_proj.lora_B.weight", np.zeros((64, 8))),
        ),
        "two updates",
    ),
    "A of another rank than B": (
        tensor(f"{Q0}.lora_A.weight", np.zeros((4, 64))),
        r"4 \(lora_A\) and 8 \(lora_B\)",
    ),
    "A and B transposed": (tensor(f"{Q0}.lora_A.weight", np.zeros((64, 8))), "64"),
    "A as a vector": (tensor(f"{Q0}.lora_A.weight", np.zeros(512)), "not that of a matrix"),
    "A of a convolution": (tensor(f"{Q0}.lora_A.weight", np.zeros((8, 3, 4, 4))), "matrix"),
    "A without columns": (tensor(f"{Q0}.lora_A.weight", np.zeros((8, 0))), "matrix"),
    "A of whole numbers": (retyped("I32", [8, 64]), "type I32"),
    "A of double precision": (retyped("F64", [8, 32]), "type F64"),
    "A of bytes": (retyped("U8", [8, 256]), "type U8"),
    "A of an unknown type": (retyped("F8_E4M3", [8, 256]), "unknown dtype"),
    "a negative size": (retyped("F32", [-8, -64]), "not whole numbers"),
    "a size that overflows": (retyped("F32", [2**40, 2**40]), "does not fit its place"),
    "tensors that share their bytes": (header(overlapping), "overlap"),
    "NaN in A": (number(float("nan")), "not finite"),
    "infinity in B": (number(float("inf"), f"{Q0}.lora_B.weight"), "not finite"),
    "B too large for its scale": (
        both(number(3e38, f"{Q0}.lora_B.weight"), config(lora_alpha=1e6)),
        "not finite",
    ),
}

UNSUPPORTED: dict[str, tuple[Damage, str]] = {
    "another method": (config(peft_type="IA3"), "IA3"),
    "DoRA": (config(use_dora=True), "DoRA"),
    "DoRA's magnitudes alone": (tensor(f"{Q0}.lora_magnitude_vector", np.ones(64)), "DoRA"),
    "modules saved whole": (config(modules_to_save=["lm_head"]), "saved whole"),
    "a module saved whole": (
        tensor("base_model.model.lm_head.modules_to_save.weight", [[1.0]]),
        "saved whole",
    ),
    "trained tokens": (config(trainable_token_indices=[3]), "token embeddings"),
    "token embeddings": (
        tensor("base_model.model.model.embed_tokens.lora_embedding_A", [[1.0]]),
        "token embeddings",
    ),
    "an output head": (tensor("base_model.model.lm_head.lora_A.weight", [[1.0]]), "output head"),
    "replicated layers": (config(layer_replication=[[0, 2]]), "replicated layers"),
    "biases of the base": (config(bias="all"), "bias"),
    "biases of its own": (config(lora_bias=True), "biases"),
    "a bias as tensor": (tensor(f"{Q0}.lora_B.bias", np.ones(64)), "biases"),
    "transposed weights": (config(fan_in_fan_out=True), "fan_in_fan_out"),
    "activated LoRA": (config(alora_invocation_tokens=[1, 2]), "activated LoRA"),
    "parameters as targets": (config(target_parameters=["experts.w"]), "no linear module"),
    "PiSSA": (config(init_lora_weights="pissa_niter_4"), "pissa"),
    "LoftQ": (config(init_lora_weights="loftq"), "loftq"),
    "a setting of the future": (config(use_quantum_lora=True), "use_quantum_lora"),
    "a pickle by its name": (only_a_pickle, "pickle"),
    "a packed projection": (
        tensor(f"{Q0[:-6]}qkv_proj.lora_A.weight", np.zeros((8, 64))),
        "qkv_proj",
    ),
    "an unknown model": (
        tensor("base_model.model.transformer.h.0.attn.lora_A.weight", np.zeros((8, 64))),
        "no model that is known",
    ),
}


def open_files() -> int:
    """Files that this process has open; 0 where the system doesn't tell."""
    descriptors = Path("/dev/fd")
    return len(list(descriptors.iterdir())) if descriptors.is_dir() else 0


def refuse(folder: Path, error: type[EdgeVLMError], words: str) -> None:
    """Raise unless reading the folder is refused with these words, and leaves nothing open."""
    before = open_files()
    with pytest.raises(error, match=words) as refusal:
        read_peft(folder, name="bad")
    assert refusal.type is error
    assert refusal.value.hint
    assert str(refusal.value).isprintable()
    del refusal
    assert open_files() == before
    shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_peft(tmp_path / "bad", SMALL, targets=("q_proj", "v_proj"))


@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_adapter_is_refused(folder: Path, case: str) -> None:
    damage, words = CORRUPT[case]
    damage(folder)
    refuse(folder, AdapterCorrupt, words)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_no_plain_lora_is_refused_by_its_name(folder: Path, case: str) -> None:
    damage, words = UNSUPPORTED[case]
    damage(folder)
    refuse(folder, NotSupported, words)


def manifest_fields(folder: Path) -> dict[str, Any]:
    files = {
        name: AdapterFile(*_size_and_hash(folder / name)) for name in (CONFIG_NAME, WEIGHTS_NAME)
    }
    bases = (DeclaredBase("edgevlm-tiny", "0123456789abcdef"),)
    manifest = Manifest("medical", "1.2.3", "Medical", "Terms.", "CC-BY-4.0", bases, files)
    write_manifest(folder, manifest)
    assert manifest_of(folder) == manifest
    fields: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    return fields


def _size_and_hash(path: Path) -> tuple[int, str]:
    received = hash_file(path)
    return received.size, received.sha256


SOUND = {"size": 1, "sha256": "0" * 64}
BOTH = {CONFIG_NAME: SOUND, WEIGHTS_NAME: SOUND}
MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": None}, "'name'"),
    "a path as name": ({"name": "../../medical"}, "'name'"),
    "capital letters in the name": ({"name": "Medical"}, "'name'"),
    "a device of Windows as name": ({"name": "con"}, "'name'"),
    "no version": ({"version": ""}, "'version'"),
    "a version of two numbers": ({"version": "1.0"}, "'version'"),
    "a version with a leading zero": ({"version": "1.02.0"}, "'version'"),
    "a version of other digits": ({"version": "\u0661.\u0660.\u0660"}, "'version'"),
    "a control character in the title": ({"title": "Medical\x1b[31m"}, "'title'"),
    "a line break in the title": ({"title": "Medical\nterms"}, "'title'"),
    "text that runs backwards": ({"description": "ab\u202ecd"}, "'description'"),
    "an endless description": ({"description": "a" * 5000}, "'description'"),
    "a list as licence": ({"licence": ["MIT"]}, "'licence'"),
    "a text as bases": ({"bases": "edgevlm-tiny"}, "'bases'"),
    "a base without a name": ({"bases": [{"fingerprint": None}]}, "'name'"),
    "a short fingerprint": ({"bases": [{"name": "a", "fingerprint": "12"}]}, "'fingerprint'"),
    "a base with more to say": ({"bases": [{"name": "a", "url": "b"}]}, "'url'"),
    "an edition before the first": ({"bases": [{"name": "a", "edition": 0}]}, "'edition'"),
    "a text as edition": ({"bases": [{"name": "a", "edition": "4"}]}, "'edition'"),
    "no files": ({"files": {}}, "'files'"),
    "no weights among the files": ({"files": {CONFIG_NAME: SOUND}}, WEIGHTS_NAME),
    "a file above the folder": ({"files": BOTH | {"../x": SOUND}}, "'files'"),
    "a file from the root": ({"files": BOTH | {"/etc/passwd": SOUND}}, "'files'"),
    "a file with a backslash": ({"files": BOTH | {"a\\..\\b": SOUND}}, "'files'"),
    "one file in two cases": ({"files": BOTH | {"a.md": SOUND, "A.md": SOUND}}, "'files'"),
    "itself among the files": ({"files": BOTH | {MANIFEST_NAME: SOUND}}, "'files'"),
    "a negative size": ({"files": BOTH | {"a": SOUND | {"size": -1}}}, "'size'"),
    "a hash that is too short": ({"files": BOTH | {"a": SOUND | {"sha256": "00"}}}, "'sha256'"),
    "a hash in capitals": ({"files": BOTH | {"a": SOUND | {"sha256": "A" * 64}}}, "'sha256'"),
    "a text as scale": ({"scale": "1"}, "'scale'"),
    "an enormous scale": ({"scale": 1e9}, "'scale'"),
    "a list as calibration": ({"calibration": [1]}, "'calibration'"),
    "an empty system prompt": ({"system": ""}, "'system'"),
    "an empty notice": ({"notice": ""}, "'notice'"),
    "a notice of two lines": ({"notice": "Not a\ndiagnosis."}, "'notice'"),
    "a notice that colours the terminal": ({"notice": "\x1b[31mNo."}, "'notice'"),
    "a notice as long as a page": ({"notice": "a" * 201}, "'notice'"),
    "an unknown field": ({"run": "rm -rf"}, "'run'"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_wrong_manifest_is_refused_with_the_name_of_its_field(folder: Path, case: str) -> None:
    changes, words = MANIFESTS[case]
    fields = manifest_fields(folder) | changes
    (folder / MANIFEST_NAME).write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(AdapterCorrupt, match=words) as refusal:
        manifest_of(folder)
    assert refusal.value.hint
    assert str(refusal.value).isprintable()


TINY_BASE = Base("edgevlm-tiny", DecoderShape(30, 576, 1536, 9, 3, 64, 49152), "0" * 64)
LARGE = {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15} | {
    "num_key_value_heads": 5,
    "num_hidden_layers": 2,
}
MISMATCHES: dict[str, tuple[dict[str, Any], list[DeclaredBase], str]] = {
    "another model by its name": ({}, [DeclaredBase("smolvlm2-500m")], "made for smolvlm2-500m"),
    "another model by its repository": (
        {},
        [DeclaredBase("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")],
        "made for HuggingFaceTB/SmolVLM2-500M",
    ),
    "another fingerprint": (
        {},
        [DeclaredBase("edgevlm-tiny", "f" * 16)],
        rf"\[{'f' * 16}\], and this is edgevlm-tiny .*\[{TINY_BASE.fingerprint}\]",
    ),
    "another width": (
        {"config": LARGE},
        [DeclaredBase("somebody/model")],
        r"made for somebody/model \(960 wide, 2 layers\), and this is edgevlm-tiny"
        r" \(576 wide, 30 layers\): layers.0.self_attn.q_proj takes 960 features to 960",
    ),
    "another width of the MLP": (
        {"config": {**TINY, "intermediate_size": 1024}, "targets": ("down_proj",)},
        [],
        "layers.0.mlp.down_proj takes 1024 features to 576 in the adapter, 1536 to 576",
    ),
    "other heads of keys": (
        {"config": {**TINY, "num_key_value_heads": 9}, "targets": ("k_proj",)},
        [],
        "576 features to 576 in the adapter, 576 to 192",
    ),
    "more layers": (
        {"config": {**TINY, "num_hidden_layers": 31}, "targets": ("q_proj",)},
        [],
        "it has no layers.30.self_attn.q_proj",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_an_adapter_of_another_base_is_refused_with_both_names(case: str) -> None:
    made, bases, words = MISMATCHES[case]
    lora = random_lora(**({"config": TINY, "targets": ("q_proj",)} | made))
    with pytest.raises(AdapterMismatch, match=words) as refusal:
        check_fits(lora, bases, TINY_BASE)
    assert "edgevlm-tiny (576 wide, 30 layers)" in str(refusal.value)
    assert refusal.value.hint
