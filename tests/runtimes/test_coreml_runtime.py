"""Core ML as a user meets it: where it runs, what it says elsewhere, what it runs beside."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_interpreter import install

from edgevlm import Session
from edgevlm.cli import run
from edgevlm.engine.placement import Placement
from edgevlm.errors import NotSupported
from edgevlm.model import load_model
from edgevlm.models.layouts import discover, offered
from edgevlm.runtimes import coreml, coreml_predict, get_runtime
from edgevlm.runtimes.coreml_predict import Package, compiled_path


def on(monkeypatch: pytest.MonkeyPatch, system: str, version: str = "") -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), ""))


@pytest.mark.parametrize(
    ("system", "version", "reason"),
    [
        ("Linux", "", "Core ML runs models on macOS only"),
        ("Windows", "", "Core ML runs models on macOS only"),
        ("Darwin", "14.7.1", "its models need macOS 15, and this is 14.7.1"),
        ("Darwin", "15.0", None),
        ("Darwin", "26.1", None),
    ],
)
def test_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, system: str, version: str, reason: str | None
) -> None:
    on(monkeypatch, system, version)
    runtime = get_runtime("coreml")
    assert (runtime.name, runtime.unavailable()) == ("coreml", reason)


def test_without_its_extra_it_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "Darwin", "15.5")
    monkeypatch.setattr(coreml, "find_spec", lambda name: None)
    reason = get_runtime("coreml").unavailable()
    assert reason == "coremltools is not installed (pip install 'edgevlm[coreml]')"


@pytest.mark.parametrize("runtime", ["coreml", "coreml+onnx"])
def test_a_package_elsewhere_is_a_clear_error(
    smolvlm_coreml: Path,
    smolvlm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runtime: str,
) -> None:
    on(monkeypatch, "Linux")
    folder = shutil.copytree(smolvlm_coreml, tmp_path / "both")
    shutil.copytree(smolvlm / "onnx", folder / "onnx")
    arguments = ["chat", "What is this?", "--model", str(folder), "--max-tokens", "2"]
    assert run([*arguments, "--runtime", runtime]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Runtime {runtime} can't run here: Core ML runs models on macOS only." in err
    assert "Traceback" not in err
    # The process lives, and another runtime takes the same folder.
    assert run([*arguments, "--runtime", "onnx"]) == 0


def test_a_package_opened_elsewhere(smolvlm_coreml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "Linux")
    with pytest.raises(NotSupported, match="macOS only"):
        Package(smolvlm_coreml / "coreml" / "decoder.mlpackage", "ALL", None)


def test_a_session_on_it(
    smolvlm_coreml: Path, smolvlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    picture = np.random.default_rng(0).integers(0, 256, (80, 150, 3), dtype=np.uint8)
    replies = []
    for folder, runtime in ((smolvlm_coreml, "coreml"), (smolvlm, "onnx")):
        with load_model(str(folder), runtime=runtime) as model:
            assert model.runtime == {"vision": runtime, "language": runtime}
            session = Session(model)
            first = session.ask("What is this?", images=[picture], max_tokens=8)
            second = session.ask("And now?", max_tokens=8)
        assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
        replies.append([token.id for reply in (first, second) for token in reply.tokens])
    assert replies[0] == replies[1]


def test_vision_here_and_language_elsewhere(
    smolvlm_coreml: Path, smolvlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    folder = shutil.copytree(smolvlm, tmp_path / "both")
    vision = Path("coreml", "vision_encoder.mlpackage")
    shutil.copytree(smolvlm_coreml / vision, folder / vision)
    picture = np.random.default_rng(0).integers(0, 256, (80, 150, 3), dtype=np.uint8)
    with load_model(str(folder), runtime="coreml+onnx") as model:
        assert model.runtime == {"vision": "coreml", "language": "onnx"}
        assert Session(model).ask("What is this?", images=[picture], max_tokens=4).tokens


VISION = ["coreml/vision_encoder.mlpackage/" + each for each in ("Manifest.json", "Data/m", "w")]
DECODER = ["coreml/decoder.mlpackage/" + each for each in ("Manifest.json", "Data/m")]
MLX = ["config.json", "tokenizer.json", "model.safetensors"]


def test_its_vision_encoder_beside_an_mlx_decoder() -> None:
    assert Placement("coreml", "mlx") in offered([*VISION, *MLX])
    assert Placement("coreml", "coreml") not in offered([*VISION, *MLX])
    layout = discover([*VISION, *DECODER, *MLX], "coreml+mlx", "toy")
    assert layout.roles == {"vision_encoder": VISION[0], "weights": "model.safetensors"}
    assert set(layout.paths) == {*VISION, *MLX}
    assert layout.quantization == {"vision": "coreml", "decoder": "mlx"}


def test_its_whole_layout() -> None:
    table = "coreml/embed_tokens.npy"
    layout = discover([*VISION, *DECODER, table, "coreml/other", *MLX], "coreml", "toy")
    assert layout.roles == {
        "vision_encoder": VISION[0],
        "decoder": DECODER[0],
        "embed_tokens": table,
    }
    assert set(layout.paths) == {*VISION, *DECODER, table, "config.json", "tokenizer.json"}


def test_nothing_is_said_at_import() -> None:
    code = "import edgevlm.runtimes.coreml_quiet as quiet; print(quiet.coremltools.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


class Compiler:
    """What coremltools does on a Mac, as far as it can be seen from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[str] = []
        self.compiled = 0
        models = coreml_predict.coremltools.models
        monkeypatch.setattr(models.utils, "compile_model", self.compile)
        monkeypatch.setattr(models, "CompiledMLModel", self.load)
        monkeypatch.setattr(models, "MLModel", self.load)
        on(monkeypatch, "Darwin", "15.5")

    def compile(self, package: str, target: str) -> None:
        self.compiled += 1
        shutil.copytree(package, target)

    def load(self, path: str, compute_units: Any) -> str:
        assert Path(path).is_dir()
        assert compute_units.name == "CPU_AND_GPU"
        self.loaded.append(path)
        return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "decoder.mlpackage"
    folder.mkdir()
    (folder / "Manifest.json").write_text("{}")
    return folder


def test_it_is_compiled_once(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, cache = Compiler(monkeypatch), tmp_path / "cache"
    for _ in range(2):
        Package(package, "CPU_AND_GPU", cache)
    assert (compiler.compiled, len(set(compiler.loaded))) == (1, 1)
    assert compiler.loaded[0] == str(compiled_path(package, cache, "15.5"))
    (package / "Manifest.json").write_text('{"another": 1}')
    Package(package, "CPU_AND_GPU", cache)
    assert compiler.compiled == 2
    assert [str(path) for path in (cache / "coreml").iterdir()] == [compiler.loaded[-1]]


def test_another_system_compiles_anew(package: Path, tmp_path: Path) -> None:
    assert compiled_path(package, tmp_path, "15.5") != compiled_path(package, tmp_path, "26.0")


def test_without_room_for_the_compiled_form(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(monkeypatch)
    (tmp_path / "cache").write_text("in the way")
    Package(package, "CPU_AND_GPU", tmp_path / "cache")
    Package(package, "CPU_AND_GPU", None)
    assert (compiler.compiled, compiler.loaded) == (0, [str(package)] * 2)


class State:
    """A state of Core ML's: the bridge to it takes no float16."""

    def __init__(self) -> None:
        self.written: dict[str, np.ndarray] = {}

    def write_state(self, name: str, value: np.ndarray) -> None:
        if value.dtype != np.float32:
            raise RuntimeError("Unsupported array type: f with itemsize = 2")
        if name != "lora_a_q_proj":
            raise RuntimeError(f"no state {name}\nat line 5")
        self.written[name] = value


def test_a_state_is_written_without_loss(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Compiler(monkeypatch)
    loaded, state = Package(package, "CPU_AND_GPU", None), State()
    value = np.array([[1 / 3, 6e-8, 65504]], np.float16)
    loaded.write_state(state, "lora_a_q_proj", value)
    np.testing.assert_array_equal(state.written["lora_a_q_proj"].astype(np.float16), value)
    with pytest.raises(coreml_predict.RuntimeFailed, match="no state lora_a") as got:
        loaded.write_state(state, "lora_a", value)
    assert "\n" not in got.value.message


def test_what_core_ml_says_is_one_line(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Compiler(monkeypatch)
    loaded = Package(package, "CPU_AND_GPU", None)
    with pytest.raises(coreml_predict.RuntimeFailed, match=r"failed on decoder\.mlpackage") as got:
        loaded.predict({})
    assert "\n" not in got.value.message
