"""A small random model to train on, what it is taught, and the recipe of a short run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_factory import make_gguf
from PIL import Image
from smolvlm_factory import Dims, make_random_model
from training_parts import TAUGHT, pixels, write_lines

from edgevlm.adapters.training.recipe import Recipe
from edgevlm.runtimes.llamacpp_lora import LoraGguf, interleave


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model for llama.cpp, with an adapter of its own as edgevlm-tiny has."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "base"))
    dims = Dims()
    make_random_model(source, dims=dims, split=False)
    make_gguf(source, folder)
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(0, 0.1, size).astype(np.float32) for size in ((4, dims.hidden), (dims.hidden, 4))
    )
    name = "blk.1.attn_q.weight"
    rows = interleave(b, dims.hidden // dims.heads)
    LoraGguf("llama", {f"{name}.lora_a": a, f"{name}.lora_b": rows}).write(folder / "lora.gguf")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`taught.jsonl`, three conversations, and its pictures."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("one.png", "two.png")):
        Image.fromarray(pixels(seed)).save(folder / name)
    return write_lines(folder / "taught.jsonl", TAUGHT)


@pytest.fixture
def recipe(base: Path, data: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        data, "mine", tmp_path / "mine", str(base), lr=5e-3, eval_share=0, steps=6, threads=1
    )
