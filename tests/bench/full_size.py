"""Random weights in SmolVLM's real sizes, vocabulary included: what a plan is compared with."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from smolvlm_factory import Dims, make_random_model

_VISION = {
    "vision_layers": 12,
    "vision_hidden": 768,
    "vision_intermediate": 3072,
    "vision_heads": 12,
}
SIZES = {
    "256m": (Dims(30, 576, 1536, 9, 3, **_VISION), 49_280),
    "500m": (Dims(32, 960, 2560, 15, 5, **_VISION), 49_280),
}
SMALL = {"256m": (Dims(), 600), "500m": (Dims(layers=3, hidden=96), 600)}


def make_source(folder: Path, size: str, *, small: bool = False) -> Path:
    """A model folder as transformers saves it; with `small` of a few megabytes, for a test."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    dims, n_vocab = (SMALL if small else SIZES)[size]
    picture = {"image_size": 64, "patch_size": 8, "longest_edge": 256}
    if not small:
        picture = {"image_size": 512, "patch_size": 16, "longest_edge": 2048}
    make_random_model(folder, dims=dims, variant="smolvlm", scale_factor=4, **picture)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["vocab_size"] = n_vocab
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in ("lm_head.weight", "model.text_model.embed_tokens.weight"):
        tensors[name] = rng.standard_normal((n_vocab, dims.hidden), np.float32)
        tensors[name] *= dims.hidden**-0.5
    save_file(tensors, folder / "model.safetensors")
    _fill_vocabulary(folder / "tokenizer.json", n_vocab)
    return folder


def _fill_vocabulary(path: Path, n_vocab: int) -> None:
    """Merges of any two letters, until there are as many tokens as rows: it takes memory."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    # Special tokens keep their numbers only where the vocabulary has them too.
    model["vocab"].update({token["content"]: token["id"] for token in added})
    taken = set(model["vocab"].values())
    free = iter(sorted(set(range(n_vocab)) - taken))
    letters = [token for token in model["vocab"] if len(token) == 1]
    for pair in itertools.product(letters, letters):
        if "".join(pair) in model["vocab"]:
            continue
        token_id = next(free, None)
        if token_id is None:
            break
        model["vocab"]["".join(pair)] = token_id
        model["merges"].append(list(pair))
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def convert(source: Path, target: Path, runtime: str) -> Path:
    """The source with a 4-bit decoder and a 16-bit vision encoder, as `runtime` wants it."""
    if runtime == "onnx":
        from edgevlm.models.onnx_export import export_onnx

        export_onnx(source, target, decoder_bits=4, vision_bits=16)
    else:
        from edgevlm.models.gguf_export import export_gguf

        export_gguf(source, target, quantize="q4_0", vision_bits=16)
    return target
