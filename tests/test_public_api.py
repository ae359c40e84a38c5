"""The names that applications import, and what importing them may cost."""

from __future__ import annotations

import subprocess
import sys

import edgevlm

ALLOWED_ON_IMPORT = {"edgevlm"}
# What `edgevlm --help` may load of the packages that take long.
HEAVY = {
    "PIL",
    "asyncio",
    "av",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "jinja2",
    "llguidance",
    "numpy",
    "onnxruntime",
    "pydantic",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
}
EXTRAS = {
    *("av", "coremltools", "keyring", "llama_cpp", "llguidance", "mlx", "mlx_vlm", "onnx"),
    *("openai", "pydantic"),
}


def test_the_public_names_are_these() -> None:
    assert edgevlm.__all__ == [
        "AsyncSession",
        "EdgeVLMError",
        "Message",
        "Model",
        "Reply",
        "Route",
        "Sampling",
        "Session",
        "Settings",
        "Timings",
        "Token",
        "Usage",
        "__version__",
        "load_model",
        "load_settings",
    ]
    for name in edgevlm.__all__:
        assert getattr(edgevlm, name) is not None


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_other_package() -> None:
    roots = {name.partition(".")[0] for name in _modules_after("import edgevlm")}
    foreign = {r for r in roots if r not in ALLOWED_ON_IMPORT and r not in sys.stdlib_module_names}
    assert foreign == set()


def test_help_loads_no_heavy_package() -> None:
    loaded = _modules_after(
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
        "  from edgevlm.cli import run; run(['--help'])"
    )
    assert {name.partition(".")[0] for name in loaded} & (HEAVY | EXTRAS) == set()


def test_a_session_loads_no_extra() -> None:
    loaded = _modules_after("import edgevlm.session")
    assert {name.partition(".")[0] for name in loaded} & EXTRAS == set()


def test_an_async_session_has_the_names_of_a_session() -> None:
    names = {name for name in vars(edgevlm.Session) if not name.startswith("_")}
    assert names - {"answering"} <= set(vars(edgevlm.AsyncSession))
