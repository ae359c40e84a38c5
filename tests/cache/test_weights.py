"""Files that are replaced under a model's name are other weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from edgevlm.cache import weights_key
from edgevlm.engine.contract import ModelFiles


def model(folder: Path) -> ModelFiles:
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "onnx/decoder.onnx", "onnx/decoder.onnx_data"):
        (folder / name).write_text(f"contents of {name}")
    roles = {"decoder": folder / "onnx" / "decoder.onnx"}
    return ModelFiles("mine", folder, roles, {"language": "4 bits"}, 5)


def test_the_same_files_have_the_same_key(tmp_path: Path) -> None:
    files = model(tmp_path / "model")
    assert weights_key(files) == weights_key(files)


def test_every_change_of_a_file_is_another_key(tmp_path: Path) -> None:
    files = model(tmp_path / "model")
    keys = [weights_key(files)]
    data = files.folder / "onnx" / "decoder.onnx_data"
    before = data.stat()
    # As large and as old as the one before, as `cp -p` makes it.
    other = tmp_path / "other"
    other.write_text("contents of onnx/decoder.onnx_dat2")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(data)
    keys.append(weights_key(files))
    data.write_text("contents of onnx/decoder.onnx_dat3")
    keys.append(weights_key(files))
    (files.folder / "tokenizer.json").write_text("{}")
    keys.append(weights_key(files))
    (files.folder / "config.json").unlink()
    keys.append(weights_key(files))
    (files.folder / "config.json").symlink_to("nowhere")
    keys.append(weights_key(files))
    assert len(set(keys)) == len(keys)


def test_name_edition_bits_and_roles_are_in_it(tmp_path: Path) -> None:
    files = model(tmp_path / "model")
    role = {"vision_encoder": files.roles["decoder"]}
    others = [
        replace(files, name="other"),
        replace(files, edition=6),
        replace(files, quantization={"language": "8 bits"}),
        replace(files, roles=role),
    ]
    assert len({weights_key(f) for f in [files, *others]}) == 5
