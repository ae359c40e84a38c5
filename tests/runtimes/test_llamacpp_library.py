"""The library is loaded late and without noise; one that is missing or broken says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_factory import make_gguf
from llamacpp_parts import llamacpp_files

from edgevlm.runtimes import llamacpp, llamacpp_library
from edgevlm.runtimes.llamacpp_library import llama
from edgevlm.runtimes.llamacpp_weights import Weights

_ANSWER = """
import json, os, sys
from pathlib import Path
import numpy as np
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes import get_runtime

runtime = get_runtime("llamacpp")
assert runtime.unavailable() is None
assert "llama_cpp" not in sys.modules
folder, roles = sys.argv[1], {role: Path(path) for role, path in json.loads(sys.argv[2]).items()}
files = ModelFiles("random", Path(folder), roles)
before = dict(os.environ)
model = runtime.load_language(files, LoadOptions(2))
vision = runtime.load_vision(files, LoadOptions(2))
assert dict(os.environ) == before
image = ImageInput(-np.ones((1, 3, 64, 64), np.float32), None, (0, 0), 4, "key")
context = model.new_context()
context.extend([np.arange(10), vision.encode(image, Cancel()), np.arange(300)], Cancel())
for broken in ([np.array([-1])], [np.zeros((2, 3), np.float32)], [np.arange(10**6)]):
    try:
        context.extend(broken, Cancel())
    except EdgeVLMError:
        pass
Path(sys.argv[3]).write_bytes(b"GGUF no more")
for load in (runtime.load_language, runtime.load_vision):
    for role in roles:
        try:
            load(ModelFiles("x", Path(folder), {**roles, role: Path(sys.argv[3])}), LoadOptions(2))
        except EdgeVLMError:
            pass
context.close(), vision.close(), model.close()
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_nothing_is_printed_and_the_environment_is_as_it_was(
    smolvlm_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    roles = {role: str(path) for role, path in llamacpp_files(smolvlm_gguf).roles.items()}
    broken = tmp_path / "mmproj-broken.gguf"
    done = run(_ANSWER, str(smolvlm_gguf), json.dumps(roles), str(broken))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_idle_threads_spin_shortly_and_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with llamacpp_library._resting_threads():
        assert [os.environ[name] for name in names] == ["PASSIVE", "1000"]
    assert not set(names) & set(os.environ)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with llamacpp_library._resting_threads():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
        assert "GOMP_SPINCOUNT" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    reason = llamacpp.LlamaCppRuntime().unavailable()
    assert reason is not None
    assert "pip install 'edgevlm[llamacpp]'" in reason


def test_a_broken_library_is_a_reason_and_no_traceback(tmp_path: Path) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('libllama.so: wrong ELF class')")
    code = """
from pathlib import Path
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import NotSupported
from edgevlm.runtimes import get_runtime
for load in (get_runtime("llamacpp").load_language, get_runtime("llamacpp").load_vision):
    try:
        load(ModelFiles("x", Path(), {}), LoadOptions(1))
    except NotSupported as error:
        print(error.exit_code, error, error.hint)
"""
    done = run(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("4 llama-cpp-python is installed and can't be loaded")
        assert "wrong ELF class" in line
        assert "pip install" in line


def test_errors_are_those_of_the_thread_that_asked() -> None:
    with llamacpp_library.errors() as lines:
        llamacpp_library._keep_errors(4, b"llama_load: error loading model: no such thing\n", None)
        llamacpp_library._keep_errors(2, b"llama_load: all is well\n", None)
        with llamacpp_library.errors() as inner:
            llamacpp_library._keep_errors(4, b"clip_init: \xff broken\n", None)
    llamacpp_library._keep_errors(4, b"later", None)
    assert llamacpp_library.reason(lines) == "no such thing"
    assert llamacpp_library.reason(inner) == "\N{REPLACEMENT CHARACTER} broken"
    assert llamacpp_library.reason([]) == "it gives no reason"


@pytest.mark.parametrize(("told", "repacked"), [(b"AMX_INT8 = 1", False), (b"AVX512 = 1", True)])
def test_weights_are_not_repacked_for_tiles_that_crash(
    smolvlm_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: bytes,
    repacked: bool,
) -> None:
    asked, load = [], llama.llama_model_load_from_file

    def loading(path: bytes, params: llama.llama_model_params) -> object:
        asked.append(params.use_extra_bufts)
        # What this machine can do is not what it is told here.
        params.use_extra_bufts = False
        return load(path, params)

    monkeypatch.setattr(llama, "llama_model_load_from_file", loading)
    monkeypatch.setattr(llama, "llama_print_system_info", lambda: b"CPU : SSE3 = 1 | " + told)
    make_gguf(smolvlm_source, tmp_path / "model")
    Weights(llamacpp_files(tmp_path / "model").roles["decoder"])
    assert asked == [repacked]
