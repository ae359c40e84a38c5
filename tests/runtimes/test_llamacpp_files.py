"""GGUF files that are broken: each a clear error, and a process that lives.

llama.cpp ends the process where what it takes for granted is not so. The files here are
loaded and used in a process of their own, which must come to its end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType
from llamacpp_parts import OPTIONS, llamacpp_files

from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import EdgeVLMError, ModelCorrupt, NotSupported
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel

CASES = 250
_USE_EACH = """
import collections, json, random, struct, sys
from pathlib import Path
import numpy as np
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel
from edgevlm.runtimes.llamacpp_vision import LlamaCppVisionEncoder

role, source, folder, header, scalars, cases = json.loads(sys.argv[1])
data, folder = Path(source).read_bytes(), Path(folder)

def broken(case):
    if case < len(scalars) * 6:
        start, changed = scalars[case // 6], bytearray(data)
        odd = (0, 1, 513, 2**31 - 1, 2**32 - 1, 0xBF800000)  # the last is -1 as a float
        changed[start : start + 4] = struct.pack("<I", odd[case % 6])
        return changed
    chance = random.Random(case)
    if case % 5 == 0:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(header)] = chance.choice((0, 1, 255, chance.randrange(256)))
    return changed

def use(path):
    files = ModelFiles("broken", folder, {role: path})
    if role == "decoder":
        model = LlamaCppLanguageModel(files, LoadOptions(1))
        context = model.new_context()
        context.extend([np.arange(5)], Cancel())
        context.close()
        model.close()
        return
    encoder = LlamaCppVisionEncoder(files, LoadOptions(1))
    pixels = -np.ones((1, 3, 64, 64), np.float32)
    try:
        encoder.encode(ImageInput(pixels, None, (0, 0), 4, "key"), Cancel())
    finally:
        encoder.close()

found = collections.Counter()
for case in range(cases + 6 * len(scalars)):
    path = folder / ("mmproj-broken.gguf" if role == "vision_encoder" else "broken.gguf")
    path.write_bytes(broken(case))
    print(case, file=sys.stderr, flush=True)
    try:
        use(path)
        found["used"] += 1
    except EdgeVLMError as error:
        found[type(error).__name__] += 1
print(json.dumps(found))
"""


def scalars(path: Path) -> list[int]:
    """Where each number of 4 bytes of the metadata, or the first of a list, lies."""
    data, found = path.read_bytes(), []
    numbers = (GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32)
    for name, field in GGUFReader(path).fields.items():
        if name.startswith("GGUF.") or not set(field.types) & set(numbers):
            continue
        start = data.index(name.encode()) + len(name) + 4
        found.append(start + 12 if field.types[0] == GGUFValueType.ARRAY else start)
    return found


@pytest.mark.parametrize("role", ["decoder", "vision_encoder"])
def test_a_broken_file_ends_no_process(smolvlm_gguf: Path, tmp_path: Path, role: str) -> None:
    source = llamacpp_files(smolvlm_gguf).roles[role]
    shutil.copyfile(smolvlm_gguf / "config.json", tmp_path / "config.json")
    header = min(tensor.data_offset for tensor in GGUFReader(source).tensors)
    arguments = [role, str(source), str(tmp_path), header, scalars(source), CASES]
    done = subprocess.run(
        [sys.executable, "-c", _USE_EACH, json.dumps(arguments)], capture_output=True, text=True
    )
    cases = [line for line in done.stderr.splitlines() if line.isdecimal()]
    assert done.returncode == 0, f"case {cases[-1]} ended it: {done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    assert found["ModelCorrupt"] > CASES / 4
    assert set(found) <= {"used", "ModelCorrupt", "NotSupported", "PromptTooLong"}
    # llama.cpp, ggml and mtmd have said nothing by themselves.
    assert done.stderr.splitlines() == cases


def refusal(folder: Path, **roles: Path) -> EdgeVLMError:
    with pytest.raises(EdgeVLMError) as caught:
        LlamaCppLanguageModel(ModelFiles("broken", folder, roles), OPTIONS)
    assert caught.value.hint
    return caught.value


def test_what_is_wrong_is_said_in_a_line(smolvlm_gguf: Path, tmp_path: Path) -> None:
    good = llamacpp_files(smolvlm_gguf).roles
    assert "has no decoder for llama.cpp" in str(refusal(tmp_path))
    assert "gone.gguf is missing" in str(refusal(tmp_path, decoder=tmp_path / "gone.gguf"))
    for content, expected in (
        (b"", "broken or incomplete: failed to read magic"),
        (b"<html>" * 100, "invalid magic characters"),
        (good["decoder"].read_bytes()[:-1000], "a tensor is not within the file"),
    ):
        (tmp_path / "x.gguf").write_bytes(content)
        error = refusal(tmp_path, decoder=tmp_path / "x.gguf")
        assert isinstance(error, ModelCorrupt)
        assert expected in str(error)
        assert len(str(error).splitlines()) == 1
    assert isinstance(refusal(tmp_path, decoder=good["vision_encoder"]), ModelCorrupt)


def test_an_architecture_that_llama_cpp_does_not_know(smolvlm_gguf: Path, tmp_path: Path) -> None:
    data = llamacpp_files(smolvlm_gguf).roles["decoder"].read_bytes()
    (tmp_path / "x.gguf").write_bytes(renamed(data))
    error = refusal(tmp_path, decoder=tmp_path / "x.gguf")
    assert isinstance(error, NotSupported)
    assert "unknown model architecture: 'llamb'" in str(error)
    assert "pip install" in str(error.hint)


def renamed(data: bytes) -> Any:
    """The architecture, and the keys that bear its name."""
    return data.replace(b"llama.", b"llamb.").replace(
        b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamb"
    )
