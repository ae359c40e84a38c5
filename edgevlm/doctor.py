"""What `edgevlm doctor` looks at: each look is a function that yields findings."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgevlm import __version__
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.sampling import log_normalizer
from edgevlm.errors import EdgeVLMError
from edgevlm.families.base import Turn
from edgevlm.model import Model, load_model
from edgevlm.models.hub import endpoint, endpoint_shown
from edgevlm.models.store import Store
from edgevlm.runtimes import get_runtime, installed_runtimes
from edgevlm.settings import Settings

Status = Literal["ok", "note", "fail"]
PACKAGES = ("onnxruntime", "numpy", "pillow", "tokenizers", "huggingface_hub", "jinja2", "pip")
# Of the extras: told where they are, since runtimes say themselves what they lack.
EXTRAS = ("llama-cpp-python", "mlx", "mlx-vlm", "coremltools", "llguidance", "av")
HUB_TIMEOUT_S = 5.0
_LITTLE_MEMORY = 10**9  # bytes: less than the smallest models want


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fail` is a thing to mend; `note` is one to know."""

    area: str
    name: str
    status: Status
    detail: str
    hint: str | None = None


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, quickest first; only the hub check leaves the machine."""
    yield from installed()
    yield from device(settings)
    yield from runtimes()
    yield from state(settings)
    yield from hub(settings)
    yield from models(settings)


def installed() -> Iterator[Finding]:
    yield Finding("install", "edgevlm", "ok", __version__)
    yield Finding("install", "python", "ok", f"{platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        try:
            yield Finding("install", package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("install", package, "fail", "missing", f"pip install {package}")
    for package in EXTRAS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield Finding("install", package, "ok", importlib.metadata.version(package))


def device(settings: Settings) -> Iterator[Finding]:
    from edgevlm.devices.machine import this_machine
    from edgevlm.devices.target import memory_left
    from edgevlm.devices.threads import compute_threads

    machine = this_machine(graphics=True)
    threads = settings.threads or compute_threads()
    named = f"{machine.board or machine.chip}, {machine.arch}, {threads} compute threads"
    yield Finding("device", "processor", "ok", named)
    if machine.features:
        yield Finding("device", "features", "ok", ", ".join(machine.features))
    left = memory_left(machine)
    memory = f"{left / 1e9:.1f} GB of {machine.limit / 1e9:.1f} GB are left for a model"
    tight = left < _LITTLE_MEMORY
    hint = "Close other programs, or use a small model." if tight else None
    yield Finding("device", "memory", "note" if tight else "ok", memory, hint)
    for gpu in machine.gpus:
        yield Finding("device", "graphics", "ok", gpu.name + (f" ({gpu.api})" if gpu.api else ""))


def runtimes() -> Iterator[Finding]:
    for name in installed_runtimes():
        try:
            reason = get_runtime(name).unavailable()
        except EdgeVLMError as error:
            yield Finding("runtime", name, "note", error.message, error.hint)
            continue
        yield Finding("runtime", name, "note" if reason else "ok", reason or "can run")


def state(settings: Settings) -> Iterator[Finding]:
    # On Windows there may be no such drive.
    folder = next((f for f in (settings.home, *settings.home.parents) if f.exists()), None)
    if folder is None or not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield Finding(
            "state", "home", "fail", f"{settings.home} can't be written", "Set EDGEVLM_HOME."
        )
        return
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding("state", "home", "ok", f"{settings.home}, {free:.1f} GB free")
    for name in ("model", "runtime", "route"):
        yield Finding("state", name, "ok", getattr(settings, name))


def hub(settings: Settings) -> Iterator[Finding]:
    if settings.offline:
        yield Finding("network", "hub", "note", "not asked: EDGEVLM_OFFLINE is set")
        return
    import httpx

    shown = endpoint_shown()
    try:
        httpx.head(endpoint(), timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        yield Finding(
            "network",
            "hub",
            "note",
            f"{shown} can't be reached ({type(error).__name__})",
            "Installed models and the built-in one work without it.",
        )
    else:
        yield Finding("network", "hub", "ok", f"{shown} answers")


def models(settings: Settings) -> Iterator[Finding]:
    installed = Store(settings).list()
    if not installed:
        yield Finding("model", "none", "note", "no model is installed", "The first chat gets one.")
    for version in installed:
        yield from model(version.name, replace(settings, runtime=version.runtime))


def model(name: str, settings: Settings) -> Iterator[Finding]:
    """Load a model as it is here and check that its parts belong together."""
    try:
        # Offline, or a model of which there is a newer edition would be fetched.
        with load_model(name, settings=replace(settings, offline=True)) as loaded:
            parts = [f"{part} on {runtime}" for part, runtime in loaded.runtime.items()]
            yield Finding("model", name, "ok", "; ".join([", ".join(parts), loaded.quantization]))
            yield from put_together(loaded)
    except EdgeVLMError as error:
        yield Finding("model", name, "fail", error.message, error.hint)


def put_together(model: Model) -> Iterator[Finding]:
    """Template, picture size, token counts, vocabulary and one forward pass of a loaded model."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (96, 160, 3), dtype=np.uint8)
    image = model.family.preprocess(picture)
    prompt = model.family.render([Turn("user", (image, "What is this?"))])
    yield Finding("model", model.name, "ok", f"its template lays out {prompt.length} tokens")
    if prompt.image_tokens != image.n_tokens:
        yield Finding(
            "model",
            model.name,
            "fail",
            f"the prompt has {prompt.image_tokens} image tokens, the processor {image.n_tokens}",
            "Its processor files do not belong to its template.",
        )
        return
    # `embed` refuses embeddings that are not [n_tokens, d_model].
    embeddings = model.embed(image, Cancel())
    height, width = image.pixel_values.shape[2:]
    yield Finding(
        "model",
        model.name,
        "ok",
        f"{len(image.pixel_values)} tiles of {height}x{width} px make {len(embeddings)} embeddings,"
        " as many as the prompt has slots",
    )
    context = PrefixContext(model.language.new_context())
    try:
        logits, _ = context.prefill(prompt, lambda _: embeddings, Cancel())
        log_normalizer(logits)  # raises where they are not finite
    finally:
        context.close()
    words = model.family.tokenizer.get_vocab_size()
    if logits.size < words:
        yield Finding(
            "model",
            model.name,
            "fail",
            f"{logits.size} logits for a tokenizer of {words} tokens",
            "The tokenizer does not belong to the decoder.",
        )
    else:
        yield Finding("model", model.name, "ok", f"{logits.size} finite logits")
