"""The Core ML decoder: chunks, exact truncation, refusals, cancelling; run by the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_factory import OPTIONS, CoreMLParts, coreml_files
from coreml_interpreter import InterpretedPackage, install

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import Block, BlockEmbeddings
from edgevlm.errors import Interrupted, ModelCorrupt, NotSupported, PromptTooLong, RuntimeFailed
from edgevlm.runtimes.coreml_decoder import CoreMLContext, CoreMLLanguageModel, causal_mask

IDS = np.random.default_rng(0).integers(3, 500, 600)
# Sums in another order, rounded to 16 bits: logits with a deviation of 3.
CHUNKING = 0.03


@pytest.fixture(scope="module")
def model(smolvlm_coreml: Path) -> CoreMLLanguageModel:
    return CoreMLParts(smolvlm_coreml).language


@pytest.fixture
def package(model: CoreMLLanguageModel) -> InterpretedPackage:
    found = model._package
    assert isinstance(found, InterpretedPackage)
    found.before, found.predictions = lambda: None, 0
    return found


@pytest.fixture
def context(model: CoreMLLanguageModel, package: InterpretedPackage) -> CoreMLContext:
    return model.new_context()


def after(model: CoreMLLanguageModel, *parts: Any) -> np.ndarray:
    return model.new_context().extend(parts, Cancel())


def test_what_the_package_says_of_itself(model: CoreMLLanguageModel) -> None:
    assert (model.n_vocab, model.d_model, model.context_length) == (514, 64, 1024)
    assert model.chunk == 256
    assert model._package.units == "CPU_AND_GPU"


def test_a_long_prompt_goes_in_chunks(
    model: CoreMLLanguageModel, package: InterpretedPackage, context: CoreMLContext
) -> None:
    logits = context.extend([IDS], Cancel())
    assert (context.length, package.predictions) == (600, 3)
    assert (logits.dtype, logits.shape) == (np.float32, (514,))
    one_by_one = model.new_context()
    one_by_one.extend([IDS[:590]], Cancel())
    for token in IDS[590:]:
        expected = one_by_one.extend([np.array([token])], Cancel())
    np.testing.assert_allclose(logits, expected, atol=CHUNKING)


def test_embeddings_are_as_good_as_the_ids_they_are_of(model: CoreMLLanguageModel) -> None:
    rows = model.embed([IDS[5:9]]).astype(np.float32)
    np.testing.assert_array_equal(after(model, IDS[:5], rows, IDS[9:12]), after(model, IDS[:12]))


def test_truncation_is_exact(model: CoreMLLanguageModel, context: CoreMLContext) -> None:
    context.extend([IDS[:40]], Cancel())
    expected = context.extend([IDS[40:50]], Cancel())
    context.extend([IDS[100:180]], Cancel())
    context.truncate(40)
    assert context.length == 40
    np.testing.assert_array_equal(context.extend([IDS[40:50]], Cancel()), expected)
    with pytest.raises(ValueError, match="can't cut 50 positions to 51"):
        context.truncate(51)


def test_what_lies_beyond_the_length_is_never_read(
    model: CoreMLLanguageModel, context: CoreMLContext
) -> None:
    context.extend([IDS[:20]], Cancel())
    for name in ("k_cache", "v_cache"):
        context._state[name][:, :, :, 20:] = np.nan
    logits = context.extend([IDS[20:30]], Cancel())
    other = model.new_context()
    other.extend([IDS[:20]], Cancel())
    np.testing.assert_array_equal(logits, other.extend([IDS[20:30]], Cancel()))


def test_contexts_do_not_meet(model: CoreMLLanguageModel) -> None:
    one, other = model.new_context(), model.new_context()
    one.extend([IDS[:10]], Cancel())
    other.extend([IDS[50:60]], Cancel())
    np.testing.assert_allclose(
        one.extend([IDS[10:20]], Cancel()), after(model, IDS[:20]), atol=CHUNKING
    )


def test_logits_belong_to_the_caller(context: CoreMLContext) -> None:
    first = context.extend([IDS[:10]], Cancel())
    kept = first.copy()
    context.extend([IDS[10:20]], Cancel())
    np.testing.assert_array_equal(first, kept)


def test_a_features_size_does_not_overflow(model: CoreMLLanguageModel) -> None:
    """The residual stream of real models passes 256, whose square fp16 can't hold; RMSNorm
    takes its scale out."""
    rows = model.embed([IDS[:8]]).astype(np.float32)
    logits = after(model, 3000 * rows)
    assert np.isfinite(logits).all()
    # So large a stream leaves the layers no say: only its direction counts.
    np.testing.assert_allclose(logits, after(model, 6000 * rows), atol=0.1)


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ([], ValueError, "nothing to append"),
        ([np.zeros((0, 64), np.float32)], ValueError, "nothing to append"),
        ([np.zeros(1020, np.int64)], PromptTooLong, "needs 1030 tokens, the context holds 1024"),
        (
            [BlockEmbeddings(np.zeros((4, 64), np.float32), Block(span=2))],
            NotSupported,
            "positions of their own",
        ),
        ([np.array([514])], RuntimeFailed, "id 514, and there are 514"),
    ],
)
def test_refusals_leave_the_context_as_it_was(
    context: CoreMLContext, model: CoreMLLanguageModel, parts: Any, error: Any, says: str
) -> None:
    context.extend([IDS[:10]], Cancel())
    with pytest.raises(error, match=says):
        context.extend(parts, Cancel())
    assert context.length == 10
    other = model.new_context()
    other.extend([IDS[:10]], Cancel())
    np.testing.assert_array_equal(
        context.extend([IDS[10:12]], Cancel()), other.extend([IDS[10:12]], Cancel())
    )


@pytest.mark.parametrize("done", [1, 2])
def test_a_cancel_stops_between_chunks(
    context: CoreMLContext, package: InterpretedPackage, done: int
) -> None:
    cancel = Cancel()
    package.before = lambda: cancel.set() if package.predictions == done - 1 else None
    with pytest.raises(Interrupted):
        context.extend([IDS], cancel)
    assert (context.length, package.predictions) == (0, done)
    package.before = lambda: None
    context.extend([IDS[:10]], Cancel())
    assert context.length == 10


def test_a_closed_context_says_so(context: CoreMLContext) -> None:
    context.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        context.extend([IDS[:1]], Cancel())


def test_a_shorter_context_may_be_asked_for(
    smolvlm_coreml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    model = CoreMLLanguageModel(coreml_files(smolvlm_coreml), LoadOptions(2, context_length=16))
    assert model.context_length == 16
    with pytest.raises(PromptTooLong, match="holds 16"):
        after(model, IDS[:17])


def test_the_mask_hides_what_comes_later() -> None:
    mask = causal_mask(2, 3)
    assert (mask.dtype, mask.shape) == (np.float16, (1, 1, 3, 5))
    assert ((mask[0, 0] == 0) == np.tri(3, 5, 2, dtype=bool)).all()
    assert (causal_mask(7, 1) == 0).all()
    # A score added to it stays a number.
    assert np.isfinite(mask - np.float16(30000)).all()


def cut(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-1000])


def no_array(table: Path) -> None:
    table.write_bytes(b"not numpy's")


def empty(table: Path) -> None:
    table.write_bytes(b"")


def pickled(table: Path) -> None:
    np.save(table, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def archive(table: Path) -> None:
    with table.open("wb") as file:
        np.savez(file, np.zeros(3))


def endless(table: Path) -> None:
    old, new = b"(514, 64), }", b"(9999999999999999999, 64), }"
    data = table.read_bytes()
    table.write_bytes(data.replace(old + b" " * (len(new) - len(old)), new))


def narrow(table: Path) -> None:
    np.save(table, np.zeros((514, 32), np.float16))


def wide_numbers(table: Path) -> None:
    np.save(table, np.zeros((514, 64), np.float64))


def odd_record(table: Path) -> None:
    np.save(table, np.zeros(514, [("scales", "<f2", (3,)), ("values", "i1", (64,))]))


@pytest.mark.parametrize(
    "damage", [cut, no_array, empty, pickled, archive, endless, narrow, wide_numbers, odd_record]
)
def test_a_table_of_embeddings_that_is_none(
    smolvlm_coreml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    install(monkeypatch)
    files = coreml_files(smolvlm_coreml)
    table = tmp_path / "embed_tokens.npy"
    table.write_bytes(files.roles["embed_tokens"].read_bytes())
    damage(table)
    roles = {**files.roles, "embed_tokens": table}
    with pytest.raises(ModelCorrupt, match=r"embed_tokens\.npy can't be used") as caught:
        CoreMLLanguageModel(ModelFiles("damaged", tmp_path, roles), OPTIONS)
    assert caught.value.hint
