"""A base is the same base whatever its files are, and another one where they say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_factory import make_gguf
from lora_factory import TINY, random_lora, write_peft
from smolvlm_factory import Dims, make_processor_files

from edgevlm.adapters.base import Base, check_fits, describe_base, model_for
from edgevlm.adapters.manifest import DeclaredBase
from edgevlm.adapters.peft import read_peft
from edgevlm.devices.shape import DecoderShape
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import AdapterMismatch

TINY_SHAPE = DecoderShape(30, 576, 1536, 9, 3, 64, 49152)


def base_of(folder: Path, decoder: str = "model.safetensors") -> Base:
    return describe_base(ModelFiles("random", folder, {"decoder": folder / decoder}, edition=3))


def test_a_checkpoint_tells_its_shapes_and_its_tokenizer(tmp_path: Path) -> None:
    base = base_of(make_processor_files(tmp_path, dims=Dims(layers=3)))
    assert base.decoder is not None
    assert (base.decoder.layers, base.decoder.hidden, base.decoder.intermediate) == (3, 64, 128)
    assert (base.decoder.heads, base.decoder.kv_heads, base.decoder.head_dim) == (4, 2, 16)
    assert base.described == "random (64 wide, 3 layers)"
    assert base.fingerprint is not None
    assert len(base.fingerprint) == 16


def test_a_gguf_alone_has_the_fingerprint_of_its_source(
    smolvlm_source: Path, tmp_path: Path
) -> None:
    make_gguf(smolvlm_source, tmp_path / "gguf")
    decoders = [p for p in (tmp_path / "gguf").glob("*.gguf") if "mmproj" not in p.name]
    (alone := tmp_path / "alone").mkdir()
    shutil.copyfile(decoders[0], alone / "model.gguf")
    found = base_of(alone, "model.gguf")
    assert found.fingerprint == base_of(smolvlm_source).fingerprint is not None


def test_a_fingerprint_is_of_shapes_and_tokenizer(tmp_path: Path) -> None:
    first = base_of(make_processor_files(tmp_path / "first"))
    again = base_of(make_processor_files(tmp_path / "again", longest_edge=512))
    wider = base_of(make_processor_files(tmp_path / "wider", dims=Dims(intermediate=256)))
    spelled = base_of(make_processor_files(tmp_path / "spelled", layout_tokens=False))
    assert again.fingerprint == first.fingerprint
    assert len({first.fingerprint, wider.fingerprint, spelled.fingerprint}) == 3


def test_files_that_tell_nothing_leave_it_unknown(tmp_path: Path) -> None:
    nothing = base_of(tmp_path)
    assert nothing == Base("random", None, None, 3)
    assert nothing.fingerprint is None
    assert nothing.described == "random"
    make_processor_files(tmp_path)
    for strange in ('{"model": []}', '{"model": {"vocab": 7}}', "[]", "{"):
        (tmp_path / "tokenizer.json").write_text(strange)
        assert base_of(tmp_path).decoder is not None
        assert base_of(tmp_path).fingerprint is None
    check_fits(random_lora(TINY), [DeclaredBase("edgevlm-tiny", "f" * 16)], nothing)


def test_a_tokenizer_that_changed_is_read_again(tmp_path: Path) -> None:
    before = base_of(make_processor_files(tmp_path)).tokenizer
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["added_tokens"][0]["content"] = "<another>"
    path.write_text(json.dumps(fields))
    assert base_of(tmp_path).tokenizer != before is not None


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ([], "edgevlm-tiny"),
        (["edgevlm-tiny"], "edgevlm-tiny"),
        (["smolvlm2-500m", "edgevlm-tiny"], "edgevlm-tiny"),
        (["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"], "smolvlm2-500m"),
        (["smolvlm2-500m"], "HuggingFaceTB/SmolVLM2-500M-Video-Instruct@main"),
        (["/home/somebody/checkpoint-300"], "edgevlm-tiny"),
        (["edgevlm-tiny"], "/home/somebody/models/tiny"),
        (["somebody/model"], "somebody-else/model-4bit"),
    ],
)
def test_names_that_may_mean_one_model_fit(declared: list[str], name: str) -> None:
    lora = random_lora(TINY, targets=("v_proj",))
    check_fits(lora, [DeclaredBase(one) for one in declared], Base(name, TINY_SHAPE, None))


def test_one_fingerprint_of_several_is_enough() -> None:
    base = Base("my-tiny", TINY_SHAPE, "0" * 64)
    lora = random_lora(TINY, targets=("v_proj",))
    other = DeclaredBase("smolvlm2-500m", "f" * 16)
    check_fits(lora, [other, DeclaredBase("edgevlm-tiny", base.fingerprint)], base)
    with pytest.raises(AdapterMismatch):
        check_fits(lora, [other], base)


def test_weights_that_changed_under_one_name_are_another_base() -> None:
    base = Base("edgevlm-tiny", TINY_SHAPE, "0" * 64, edition=5)
    lora = random_lora(TINY, targets=("v_proj",))
    old, new = (DeclaredBase("edgevlm-tiny", base.fingerprint, edition) for edition in (4, 5))
    with pytest.raises(
        AdapterMismatch, match=r"made for edgevlm-tiny edition 4, and this is edition 5\."
    ) as refusal:
        check_fits(lora, [old], base)
    assert refusal.value.hint
    check_fits(lora, [old, new], base)
    check_fits(lora, [replace(old, edition=None)], base)  # a plain PEFT folder doesn't say
    check_fits(lora, [old], replace(base, edition=None))  # nor do files from elsewhere
    check_fits(lora, [replace(old, name="somebody/model")], base)  # which counts its own


def test_what_the_factory_writes_fits_the_model_it_is_for(tmp_path: Path) -> None:
    folder = make_processor_files(tmp_path / "model")
    check_fits(read_peft(write_peft(tmp_path / "peft", folder), name="x"), [], base_of(folder))


@pytest.mark.parametrize(
    ("bases", "model"),
    [
        ([], None),
        ([[]], None),
        ([["edgevlm-tiny"]], "edgevlm-tiny"),
        ([["edgevlm-tiny"], []], "edgevlm-tiny"),
        ([["owner/repo", "smolvlm-256m", "edgevlm-tiny"], ["edgevlm-tiny"]], "edgevlm-tiny"),
        ([["edgevlm-tiny"], ["smolvlm-256m"]], None),
        ([["owner/repo"]], None),
    ],
)
def test_the_model_that_adapters_were_made_for(bases: list[list[str]], model: str | None) -> None:
    assert model_for([DeclaredBase(name) for name in names] for names in bases) == model
