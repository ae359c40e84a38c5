"""What every test stands on: a home folder of its own, and no network but loopback."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import HubServer

# torch and llama.cpp share one OpenMP, which reads it when the first of them is loaded: its
# workers would otherwise spin while they wait, and take the cores from other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# No key of the person who runs the tests gets in, and no keyring asks for a password.
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every
# program that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_STATE = ("EDGEVLM_", "HF_", "HUGGING_FACE_")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `EDGEVLM_HOME`; no setting of the person who runs the tests gets in."""
    for name in list(os.environ):
        if name.startswith(_STATE):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("EDGEVLM_HOME", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    # What a test asks twice it wants computed twice.
    monkeypatch.setenv("EDGEVLM_CACHE", "0")
    return folder


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection of this process that leaves the machine."""
    connect = socket.socket.connect
    connect_ex = socket.socket.connect_ex

    def guarded(self: socket.socket, address: object) -> None:
        _refuse_strangers(self, address)
        connect(self, address)  # type: ignore[arg-type]

    def guarded_ex(self: socket.socket, address: object) -> int:
        _refuse_strangers(self, address)
        return connect_ex(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


def _refuse_strangers(sock: socket.socket, address: object) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    assert isinstance(address, tuple)
    if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        raise OSError(f"tests may not connect to {address[0]}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty hub on loopback, which the client finds through HF_ENDPOINT, without a pause
    before it tries again."""
    from hub_server import HubServer

    from edgevlm.models import hub as hub_client

    monkeypatch.setattr(hub_client, "_PAUSES", (0.0, 0.0, 0.0, 0.0))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="session")
def smolvlm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random-weight SmolVLM as transformers saves it, fp32."""
    from smolvlm_factory import make_random_model

    folder = tmp_path_factory.mktemp("smolvlm-source")
    make_random_model(folder, seed=0, variant="smolvlm")
    return folder


@pytest.fixture(scope="session")
def smolvlm(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in the three-file ONNX layout, fp32."""
    from edgevlm.models.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("smolvlm-onnx")
    export_onnx(smolvlm_source, folder, decoder_bits=32, vision_bits=32)
    return folder


def pytest_unconfigure() -> None:
    """Close what llama_cpp leaves open, of which Python would complain at its end."""
    if (utils := sys.modules.get("llama_cpp._utils")) is not None:
        utils.outnull_file.close()
        utils.errnull_file.close()


@pytest.fixture(scope="session")
def smolvlm_everywhere(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model for ONNX Runtime, llama.cpp and MLX in one folder, fp32."""
    import shutil

    from edgevlm.models.gguf_export import export_gguf
    from edgevlm.models.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("smolvlm-everywhere")
    export_gguf(smolvlm_source, folder, quantize="f32", vision_bits=32)
    export_onnx(smolvlm_source, folder, decoder_bits=32, vision_bits=32)
    shutil.copyfile(smolvlm_source / "model.safetensors", folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def smolvlm_coreml(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as Core ML packages at 16 bits, for `coreml_interpreter` to run."""
    from edgevlm.models.coreml_export import export_coreml

    folder = tmp_path_factory.mktemp("smolvlm-coreml")
    export_coreml(smolvlm_source, folder, bits=16, context_length=1024)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M's real weights at 4 bits, fetched once as the built-in model's are."""
    from smollm2 import fetch

    return fetch(tmp_path_factory.mktemp("smollm2-home"))


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder into which the built-in model was fetched and assembled."""
    from edgevlm import load_settings
    from edgevlm.models.store import Store

    home = tmp_path_factory.mktemp("tiny-home")
    settings = load_settings({"EDGEVLM_HOME": str(home)})
    Store(settings).resolve("edgevlm-tiny", runtime="onnx")
    return home
