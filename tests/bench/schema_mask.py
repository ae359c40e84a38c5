"""What structured output costs: reading a vocabulary, reading a schema, and the mask of a token.

    python tests/bench/schema_mask.py                       the built-in model's 49,152 tokens
    python tests/bench/schema_mask.py --model FOLDER

Answers are driven by random logits, which visit more of a schema than a model would. A token
costs one `apply` and one `accept`; the rest of a decoding step is not in it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from edgevlm import load_settings
from edgevlm.engine.grammar import Grammars
from edgevlm.engine.schema import Schema
from edgevlm.families import load_family
from edgevlm.models.store import Store

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["food", "animal", "vehicle"]},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,8}$"},
    },
    "required": ["name", "kind", "share", "tags", "code"],
}


def main() -> None:
    arguments = _arguments()
    folder = Path(arguments.model)
    if not folder.is_dir():
        folder = Store(load_settings()).resolve(arguments.model, runtime="onnx").folder
    family = load_family(folder)
    n_vocab = family.tokenizer.get_vocab_size()
    started = time.perf_counter()
    grammars = Grammars(family.tokenizer, n_vocab, family.stop_ids)
    vocabulary = time.perf_counter() - started
    text = Schema.of(SCHEMA).text
    rng = np.random.default_rng(0)
    schemas: list[float] = []
    tokens: list[float] = []
    for _ in range(arguments.answers):
        started = time.perf_counter()
        mask = grammars.mask(text)
        schemas.append(time.perf_counter() - started)
        for _ in range(arguments.tokens):
            logits = rng.normal(size=n_vocab).astype(np.float32)
            started = time.perf_counter()
            mask.accept(int(mask.apply(logits).argmax()))
            tokens.append(time.perf_counter() - started)
            if mask.finished:
                break
    middle, high = (float(np.quantile(tokens, share)) * 1000 for share in (0.5, 0.99))
    result = {
        "n_vocab": n_vocab,
        "vocabulary_ms": vocabulary * 1000,
        "schema_ms": float(np.median(schemas)) * 1000,
        "token_ms": middle,
        "token_p99_ms": high,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"vocabulary of {n_vocab} tokens, once a model {result['vocabulary_ms']:8.1f} ms")
    print(f"schema, once an answer                    {result['schema_ms']:8.2f} ms")
    print(f"mask, each token (median, 99%)            {middle:8.3f} ms, {high:.3f} ms")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="edgevlm-tiny")
    parser.add_argument("--answers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
