"""How far a converted model's distributions are from its source's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.devices.threads import compute_threads
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, VisionEncoder
from edgevlm.engine.prefix import PrefixContext
from edgevlm.families import load_family
from edgevlm.models.convert.prompts import Forced, forced_prompts
from edgevlm.runtimes import get_runtime

Rows = NDArray[np.float32]


def forced_logits(files: ModelFiles, runtime: str) -> Rows:
    """Load a model and read the fixed prompt set: logits float32 [n_tokens, n_vocab], a row
    for every token of the answers, before it is read.

    Raises what loading and running raise.
    """
    forced = list(forced_prompts(load_family(files.folder)))
    options = LoadOptions(threads=compute_threads())
    loader = get_runtime(runtime)
    language = loader.load_language(files, options)
    try:
        vision = loader.load_vision(files, options)
        try:
            rows = [_read(each, language, vision) for each in forced]
        finally:
            vision.close()
    finally:
        language.close()
    return np.concatenate(rows)


def _read(forced: Forced, language: LanguageModel, vision: VisionEncoder) -> Rows:
    cancel = Cancel()
    context = PrefixContext(language.new_context())
    try:
        logits, _ = context.prefill(
            forced.prompt, lambda i: vision.encode(forced.prompt.images[i], cancel), cancel
        )
        rows = [logits]
        for token_id in forced.answer[:-1]:
            rows.append(context.extend(token_id, cancel))
        return np.stack(rows)
    finally:
        context.close()


def kl_divergence(source: Rows, found: Rows) -> NDArray[np.float64]:
    """KL(source || found) float64 [n] in nats, of the softmax of logits [n, n_vocab]
    (Kullback and Leibler 1951)."""
    return np.array([_kl(p, q) for p, q in zip(source, found, strict=True)])


def top1_agreement(source: Rows, found: Rows) -> float:
    """The share of rows with the same most likely token."""
    return float((source.argmax(axis=-1) == found.argmax(axis=-1)).mean())


def _kl(source: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    p, q = _log_softmax(source), _log_softmax(found)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
