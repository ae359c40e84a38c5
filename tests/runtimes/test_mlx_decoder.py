"""The contract, on MLX: exact after a cut, a cancel, a wrong guess, and from any thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_factory import OPTIONS, CountedCancel, MlxParts, mlx_files
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions
from edgevlm.engine.prompt import Block, BlockEmbeddings, ImageInput
from edgevlm.errors import Interrupted, ModelCorrupt, NotSupported, PromptTooLong, RuntimeFailed
from edgevlm.runtimes.mlx_decoder import MlxContext, MlxLanguageModel
from edgevlm.runtimes.mlx_thread import on_mlx_thread
from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

IDS = np.random.default_rng(5).integers(0, 500, 150)


@pytest.fixture(scope="module")
def parts(smolvlm_source: Path) -> MlxParts:
    return MlxParts(smolvlm_source)


@pytest.fixture(scope="module")
def model(parts: MlxParts) -> MlxLanguageModel:
    return parts.language


def cold(model: MlxLanguageModel, ids: Any) -> NDArray[np.float32]:
    return model.new_context().extend([np.asarray(ids)], Cancel())


def assert_near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def held(context: MlxContext) -> int:
    """How much its cache holds, when what a cancel left behind has stopped."""
    cache = context._cache
    assert cache is not None
    return on_mlx_thread(lambda: cache.length)


def test_what_is_kept_after_a_cut_is_exact(model: MlxLanguageModel) -> None:
    context = model.new_context()
    context.extend([IDS], Cancel())
    context.truncate(70)
    assert context.length == held(context) == 70
    assert_near(context.extend([IDS[:40]], Cancel()), cold(model, [*IDS[:70], *IDS[:40]]))
    context.truncate(0)
    assert_near(context.extend([IDS[:9]], Cancel()), cold(model, IDS[:9]))


def test_a_likely_token_and_an_unlikely_one_give_what_a_cold_run_gives(
    model: MlxLanguageModel,
) -> None:
    context, ids = model.new_context(), list(IDS[:20])
    logits = context.extend([IDS[:20]], Cancel())
    # Runs of the likeliest token, on which the next step is begun ahead, broken by others.
    for likely in (True, True, True, False, False, True, True, False, True):
        ids.append(int(logits.argmax() if likely else logits.argmin()))
        logits = context.extend([np.array([ids[-1]])], Cancel())
        assert_near(logits, cold(model, ids))
        assert context.length == len(ids)


def test_a_step_begun_ahead_is_forgotten_by_a_cut_and_by_a_prompt(model: MlxLanguageModel) -> None:
    for cut in (22, 10):
        context, ids = model.new_context(), list(IDS[:20])
        logits = context.extend([IDS[:20]], Cancel())
        for _ in range(3):
            ids.append(int(logits.argmax()))
            logits = context.extend([np.array([ids[-1]])], Cancel())
        assert held(context) == context.length + 1
        context.truncate(cut)
        assert held(context) == cut
        assert_near(context.extend([IDS[:40]], Cancel()), cold(model, [*ids[:cut], *IDS[:40]]))


@pytest.mark.parametrize("kept", [0, 33])
def test_a_cancel_anywhere_in_a_prefill_leaves_what_was(model: MlxLanguageModel, kept: int) -> None:
    expected = cold(model, IDS[:120])

    def begun() -> MlxContext:
        context = model.new_context()
        if kept:
            context.extend([IDS[:kept]], Cancel())
        return context

    asked = CountedCancel(10**6)
    begun().extend([IDS[kept:120]], asked)
    # Once at the beginning, then before each of the two layers of each chunk.
    assert asked.asked >= 1 + 2 * 3
    for n in range(1, asked.asked + 1):
        context = begun()
        with pytest.raises(Interrupted):
            context.extend([IDS[kept:120]], CountedCancel(n))
        assert context.length == held(context) == kept
        assert_near(context.extend([IDS[kept:120]], Cancel()), expected)


def test_a_cancel_in_decoding_leaves_what_was(model: MlxLanguageModel) -> None:
    context = model.new_context()
    logits = context.extend([IDS[:20]], Cancel())
    likely = np.array([logits.argmax()])
    with pytest.raises(Interrupted):
        context.extend([likely], CountedCancel(1))
    assert context.length == 20
    assert_near(context.extend([likely], Cancel()), cold(model, [*IDS[:20], *likely]))


def test_a_step_that_was_given_up_and_came_to_its_end(model: MlxLanguageModel) -> None:
    """As when the flag is set while the last layer is computed."""
    context = model.new_context()
    logits = context.extend([IDS[:20]], Cancel())
    ids = list(IDS[:20])
    for _ in range(2):
        ids.append(int(logits.argmax()))
        logits = context.extend([np.array([ids[-1]])], Cancel())
    likely = np.array([logits.argmax()])
    on_mlx_thread(context._extend, [likely], Cancel())
    assert (context.length, held(context)) == (22, 24)
    assert_near(context.extend([likely], Cancel()), cold(model, [*ids, *likely]))
    assert context.length == 23


def test_embeddings_of_another_runtime_go_in_between_ids(
    model: MlxLanguageModel, smolvlm_source: Path
) -> None:
    table = _embedding_table(smolvlm_source)
    rows = table[IDS[30:50]]
    found = model.new_context().extend([IDS[:30], rows, IDS[50:60]], Cancel())
    assert_near(found, cold(model, IDS[:60]))
    context = model.new_context()
    context.extend([IDS[:30]], Cancel())
    assert_near(context.extend([rows], Cancel()), cold(model, IDS[:50]))


def _embedding_table(folder: Path) -> NDArray[np.float32]:
    from edgevlm.models.safetensors import SafetensorsFile

    return SafetensorsFile(folder / "model.safetensors").read(
        "model.text_model.embed_tokens.weight"
    )


def test_sessions_of_any_thread_share_a_model(model: MlxLanguageModel) -> None:
    expected = [cold(model, IDS[:n]) for n in (40, 60)]
    found: dict[int, NDArray[np.float32]] = {}

    def work(index: int, length: int) -> None:
        context = model.new_context()
        context.extend([IDS[: length - 3]], Cancel())
        for position in range(length - 3, length):
            found[index] = context.extend([IDS[position : position + 1]], Cancel())

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((40, 60))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, logits in enumerate(expected):
        assert_near(found[index], logits)


@pytest.mark.parametrize("ids", [[5, -1], [10**9], [5, 10**9]])
def test_ids_beyond_the_table_are_refused(model: MlxLanguageModel, ids: list[int]) -> None:
    """MLX would read whatever is in memory there."""
    context = model.new_context()
    context.extend([IDS[:20]], Cancel())
    with pytest.raises(RuntimeFailed, match=r"no token (-1|1000000000)"):
        context.extend([np.array(ids)], Cancel())
    with pytest.raises(RuntimeFailed, match=f"no token {model.n_vocab}"):
        context.extend([np.array([model.n_vocab])], Cancel())
    assert context.length == 20
    assert_near(context.extend([IDS[20:30]], Cancel()), cold(model, IDS[:30]))


def test_logits_belong_to_the_caller(model: MlxLanguageModel) -> None:
    context = model.new_context()
    first = context.extend([IDS[:5]], Cancel())
    kept = first.copy()
    first[:] = 0
    second = context.extend([IDS[5:6]], Cancel())
    context.truncate(4)
    assert_near(context.extend([IDS[4:5]], Cancel()), kept)
    assert second.flags.writeable
    assert second.base is None


def test_the_context_ends_where_the_options_say(smolvlm_source: Path) -> None:
    files = mlx_files(smolvlm_source)
    model = MlxLanguageModel(files, LoadOptions(threads=1, context_length=24))
    assert model.context_length == 24
    context = model.new_context()
    logits = context.extend([IDS[:20]], Cancel())
    for _ in range(4):
        logits = context.extend([np.array([logits.argmax()])], Cancel())
    assert context.length == held(context) == 24
    with pytest.raises(PromptTooLong, match="needs 25 tokens, the context holds 24"):
        context.extend([IDS[:1]], Cancel())
    assert context.length == 24


def test_what_can_not_be_appended(model: MlxLanguageModel) -> None:
    context = model.new_context()
    with pytest.raises(ValueError, match="nothing"):
        context.extend([], Cancel())
    both_ways = Block(span=2, causal=False)
    rows = np.zeros((2, model.d_model), np.float32)
    with pytest.raises(NotSupported, match="both ways"):
        context.extend([BlockEmbeddings(rows, both_ways)], Cancel())
    with pytest.raises(ValueError, match="can't cut 0"):
        context.truncate(1)
    context.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        context.extend([IDS[:2]], Cancel())


def test_each_part_reads_its_own_weights(smolvlm_source: Path) -> None:
    def growth(load: Any) -> int:
        before = on_mlx_thread(mx.get_active_memory)
        part = load(mlx_files(smolvlm_source), OPTIONS)
        grown = on_mlx_thread(mx.get_active_memory) - before
        part.close()
        return int(grown)

    language, vision = growth(MlxLanguageModel), growth(MlxVisionEncoder)
    whole = (smolvlm_source / "model.safetensors").stat().st_size
    assert language + vision < 1.05 * whole
    assert min(language, vision) > 0.1 * whole


def random_picture(size: int = 64, tiles: int = 2) -> ImageInput:
    pixels = np.random.default_rng(3).standard_normal((tiles, 3, size, size), np.float32)
    return ImageInput(pixels, None, (0, 0), 4 * tiles, "key")


def test_a_cancel_anywhere_in_a_picture(parts: MlxParts) -> None:
    image = random_picture()
    asked = CountedCancel(10**6)
    expected = parts.vision.encode(image, asked)
    assert expected.shape == (image.n_tokens, parts.language.d_model)
    # At the beginning, before each tile, and after each of its layers.
    assert asked.asked == 1 + 2 * (1 + 2)
    for n in range(1, asked.asked + 1):
        with pytest.raises(Interrupted):
            parts.vision.encode(image, CountedCancel(n))
    np.testing.assert_array_equal(parts.vision.encode(image, Cancel()), expected)


def test_pictures_of_another_processor_are_refused(parts: MlxParts) -> None:
    with pytest.raises(ModelCorrupt, match=r"takes \(3, 64, 64\) pictures"):
        parts.vision.encode(random_picture(32), Cancel())
    padded = random_picture()
    mask = np.ones((2, 64, 64), np.bool_)
    mask[1, 40:] = False
    image = ImageInput(padded.pixel_values, mask, (0, 0), 8, "key")
    with pytest.raises(NotSupported, match="padding"):
        parts.vision.encode(image, Cancel())


def test_a_closed_model_says_so(smolvlm_source: Path) -> None:
    parts = MlxParts(smolvlm_source)
    parts.language.close()
    parts.vision.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        parts.language.new_context()
    with pytest.raises(RuntimeFailed, match="closed"):
        parts.vision.encode(random_picture(), Cancel())


def test_the_program_ends_in_peace(smolvlm_source: Path) -> None:
    """With a step begun ahead; MLX aborts a process whose streams outlive their thread."""
    code = f"""
import numpy as np
from mlx_factory import OPTIONS, mlx_files
from pathlib import Path
from edgevlm.engine.cancel import Cancel
from edgevlm.runtimes.mlx_decoder import MlxLanguageModel
context = MlxLanguageModel(mlx_files(Path({str(smolvlm_source)!r})), OPTIONS).new_context()
logits = context.extend([np.arange(9)], Cancel())
for _ in range(3):
    logits = context.extend([np.array([logits.argmax()])], Cancel())
"""
    tests = str(Path(__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tests, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
