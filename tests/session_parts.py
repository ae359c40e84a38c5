"""How tests of `Session` with adapters ask, compare answers and describe packs."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm import Model, Session
from edgevlm.adapters.manifest import AdapterFile, manifest_of, write_manifest
from edgevlm.messages import Reply

SYSTEM = "Answer in one word."
NOTICE = "Not a diagnosis."
QUESTION, NEXT = "What is in the picture?", "And what colour is it?"


def describe(folder: Path, **fields: Any) -> None:
    files = {
        path.name: AdapterFile(path.stat().st_size, sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    manifest = replace(manifest_of(folder), description="Random.", files=files, **fields)
    write_manifest(folder, manifest)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def ask(session: Session, question: str = QUESTION, **options: Any) -> Reply:
    images = [picture()] if question == QUESTION else []
    return session.ask(question, images=images, max_tokens=6, **options)


def same(one: Reply, other: Reply) -> bool:
    """The same tokens, but for what prefill in other chunks or another order of sums does."""
    ids = [[token.id for token in reply.tokens] for reply in (one, other)]
    logprobs = [[token.logprob for token in reply.tokens] for reply in (one, other)]
    return ids[0] == ids[1] and np.allclose(*logprobs, rtol=0, atol=2e-3)


def afresh(model: Model, before: Session, question: str, adapter: Any) -> Reply:
    """The next answer of a conversation in which nothing is computed yet."""
    with Session(model, adapter=adapter) as session:
        session._spoken += before._spoken
        return ask(session, question)
