"""Adapters on Core ML, run by the interpreter: merged weights on transformers say what they do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_factory import OPTIONS, CoreMLParts, coreml_files
from coreml_interpreter import InterpretedPackage, install
from coremltools.proto import Model_pb2
from decoder_adapters import IDS, MISFITS, Scaled, changed, logits, merged_logits, mixtures, use
from lora_factory import random_lora, write_peft

from edgevlm import Session
from edgevlm.adapters.peft import read_peft
from edgevlm.engine.adapter import LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import AdapterMismatch, ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.model import load_model
from edgevlm.models.coreml_export import export_coreml
from edgevlm.runtimes.coreml_adapter import LORA_STATES
from edgevlm.runtimes.coreml_decoder import CoreMLLanguageModel

# Of the deviation of the logits, which is 3. Those above 8 have steps of 0.008 at 16 bits, and
# the same updates merged into the weights before a conversion come as far from float32.
LOGITS = 1e-2


@pytest.fixture(scope="module")
def model(smolvlm_coreml: Path) -> CoreMLLanguageModel:
    return CoreMLParts(smolvlm_coreml).language


@pytest.fixture(scope="module")
def mixes(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scaled]:
    folder = tmp_path_factory.mktemp("rslora")
    write_peft(folder, smolvlm_source, rank=16, alpha=8, rslora=True, seed=3)
    return {**mixtures(smolvlm_source), "rsLoRA": [(read_peft(folder, name="rslora"), 1.0)]}


@pytest.mark.parametrize(
    "mix", ["rank 8", "rank 16 with exceptions", "rsLoRA", "some modules", "two with scales"]
)
def test_as_if_merged(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled], smolvlm_source: Path, mix: str
) -> None:
    context = model.new_context()
    base = logits(context)
    use(model, context, mixes[mix])
    found = logits(context)
    expected = merged_logits(smolvlm_source, mixes[mix])
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGITS * expected.std())
    assert np.abs(found - base).max() > 0.5
    context.use_adapters({})
    assert logits(context).tobytes() == base.tobytes()


@pytest.fixture(scope="module")
def without_room(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As packages were converted before they could take adapters."""
    folder = tmp_path_factory.mktemp("without-room")
    export_coreml(smolvlm_source, folder, bits=16, context_length=1024, max_rank=0)
    return folder


def test_room_for_adapters_changes_no_bit_of_the_base(
    model: CoreMLLanguageModel, without_room: Path
) -> None:
    plain = CoreMLParts(without_room).language
    assert logits(model.new_context()).tobytes() == logits(plain.new_context()).tobytes()


def test_a_package_without_room_answers_on(without_room: Path, mixes: Mapping[str, Scaled]) -> None:
    plain = CoreMLParts(without_room).language
    context = plain.new_context()
    expected = logits(context)
    with pytest.raises(NotSupported, match="no room for the adapter rank-8"):
        use(plain, context, mixes["rank 8"])
    context.use_adapters({})
    np.testing.assert_array_equal(logits(context), expected)


def test_contexts_have_adapters_of_their_own(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    chosen: list[Scaled] = [[], mixes["rank 8"], mixes["some modules"], mixes["rank 8"]]
    alone, together = [], [model.new_context() for _ in chosen]
    for mix in chosen:
        context = model.new_context()
        use(model, context, mix)
        alone.append([context.extend([IDS[i : i + 1]], Cancel()) for i in range(4)])
    for context, mix in zip(together, chosen, strict=True):
        use(model, context, mix)
    for i in range(4):
        for context, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(context.extend([IDS[i : i + 1]], Cancel()), expected[i])


def test_a_change_amid_a_sequence_keeps_what_was_computed(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    context = model.new_context()
    context.extend([IDS[:20]], Cancel())
    use(model, context, mixes["rank 8"])
    changed = context.extend([IDS[20:]], Cancel())
    context.truncate(0)
    fresh = context.extend([IDS], Cancel())
    assert np.abs(fresh - changed).max() > 0.1
    context.use_adapters({})
    context.truncate(0)
    context.extend([IDS[:20]], Cancel())
    use(model, context, mixes["rank 8"])
    np.testing.assert_array_equal(context.extend([IDS[20:]], Cancel()), changed)


def test_the_order_of_adapters_moves_no_bit(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    rows = []
    for mix in (mixes["two with scales"], mixes["two with scales"][::-1]):
        context = model.new_context()
        use(model, context, mix)
        rows.append(logits(context))
    np.testing.assert_array_equal(*rows)


def test_swaps_leave_nothing_behind(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    ((values, _),) = mixes["some modules"]
    swaps: list[Scaled] = [
        mixes["two with scales"],
        mixes["some modules"],
        [(values, 0.5)],
        [],
        mixes["rank 8"],
    ]
    context = model.new_context()
    for mix in swaps:
        fresh = model.new_context()
        for each in (context, fresh):
            use(model, each, mix)
        np.testing.assert_array_equal(logits(context), logits(fresh))
    # Changes between which nothing is computed.
    for mix in swaps[::-1]:
        use(model, context, mix)
    use(model, context, [])
    np.testing.assert_array_equal(logits(context), logits(model.new_context()))


def test_an_adapter_is_kept_at_16_bits(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    ((lora, _),) = mixes["rank 8"]
    rows = model.load_adapter(lora).rows
    assert rows is not None
    assert 2 * sum(a.nbytes + b.nbytes for a, b in rows.values()) == lora.n_bytes


def test_more_rank_than_there_is_room_for(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled], smolvlm_source: Path
) -> None:
    large = random_lora(smolvlm_source, name="large", rank=33, targets=["o_proj"])
    with pytest.raises(NotSupported, match="for adapters of rank 32, and large needs 33"):
        model.load_adapter(large)
    whole = random_lora(smolvlm_source, name="whole", rank=32, seed=4)
    context = model.new_context()
    use(model, context, mixes["rank 8"])
    expected = logits(context)
    with pytest.raises(NotSupported, match="of rank 32, and rank-8 and whole need 40"):
        use(model, context, [*mixes["rank 8"], (whole, 1.0)])
    np.testing.assert_array_equal(logits(context), expected)
    use(model, context, [(whole, 1.0)])
    expected = merged_logits(smolvlm_source, [(whole, 1.0)])
    np.testing.assert_allclose(logits(context), expected, rtol=0, atol=LOGITS * expected.std())


def test_numbers_beyond_16_bits(model: CoreMLLanguageModel, mixes: Mapping[str, Scaled]) -> None:
    context = model.new_context()
    expected = logits(context)
    with pytest.raises(NotSupported, match=r"rank-8 times 1e\+06 has numbers that 16 bits can"):
        use(model, context, [(lora, 1e6) for lora, _ in mixes["rank 8"]])
    np.testing.assert_array_equal(logits(context), expected)
    ((lora, _),) = mixes["rank 8"]
    huge = LowRank(np.full((1, 64), 1e5, np.float32), np.ones((64, 1), np.float32))
    with pytest.raises(NotSupported, match="adapter strange has numbers that 16 bits can"):
        model.load_adapter(changed(lora, "layers.1.self_attn.q_proj", huge))


@pytest.mark.parametrize(("module", "strange", "message"), MISFITS)
def test_refuses_adapters_of_another_base(
    model: CoreMLLanguageModel,
    mixes: Mapping[str, Scaled],
    module: str,
    strange: LowRank,
    message: str,
) -> None:
    with pytest.raises(AdapterMismatch, match=message):
        model.load_adapter(changed(mixes["rank 8"][0][0], module, strange))


def test_refuses_what_is_closed_or_of_another_model(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled], smolvlm_coreml: Path
) -> None:
    ((lora, _),) = mixes["rank 8"]
    adapter, other = model.load_adapter(lora), CoreMLParts(smolvlm_coreml).language
    context = model.new_context()
    context.use_adapters({adapter: 1.0})
    expected = logits(context)
    with pytest.raises(AdapterMismatch, match="another model"):
        other.new_context().use_adapters({adapter: 1.0})
    adapter.close()
    assert adapter.rows is None
    np.testing.assert_array_equal(logits(context), expected)
    with pytest.raises(RuntimeFailed, match="rank-8 was closed"):
        context.use_adapters({adapter: 0.5})
    np.testing.assert_array_equal(logits(context), expected)
    context.close()
    with pytest.raises(RuntimeFailed, match="context was closed"):
        context.use_adapters({})


def test_a_write_that_fails_is_made_up_for(
    model: CoreMLLanguageModel, mixes: Mapping[str, Scaled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core ML may refuse one state after it took others: nothing is computed with a part."""
    context, whole = model.new_context(), model.new_context()
    logits(context)
    for each in (context, whole):
        use(model, each, mixes["rank 8"])
    write, left = InterpretedPackage.write_state, [5]

    def fail_later(package: InterpretedPackage, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeFailed("Core ML failed on decoder.mlpackage: no memory.")
        write(package, *arguments)

    monkeypatch.setattr(InterpretedPackage, "write_state", fail_later)
    predictions = model._package.predictions  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(RuntimeFailed, match="no memory"):
            context.extend([IDS[:3]], Cancel())
    assert model._package.predictions == predictions  # type: ignore[attr-defined]
    monkeypatch.undo()
    np.testing.assert_array_equal(logits(context), logits(whole))


def test_a_session_with_an_adapter(
    smolvlm_coreml: Path, smolvlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    adapter = str(write_peft(tmp_path / "mine", smolvlm_coreml))
    replies = []
    for folder, runtime in ((smolvlm_coreml, "coreml"), (smolvlm, "onnx")):
        with load_model(str(folder), runtime=runtime) as model:
            session = Session(model)
            texts = [session.ask("What is this?", max_tokens=6).text]
            texts.append(session.ask("And now?", max_tokens=6, adapter=f"{adapter}:0.7").text)
            texts.append(session.ask("And now?", max_tokens=6).text)
            replies.append(texts)
    assert replies[0] == replies[1]
    assert len(set(replies[0])) > 1


def test_an_adapter_of_the_vision_tower_is_refused(
    smolvlm_coreml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    tower = {"model.vision_model.encoder.layers.0.self_attn.q_proj": (32, 32)}
    adapter = str(write_peft(tmp_path / "looks", smolvlm_coreml, extra=tower))
    with load_model(str(smolvlm_coreml), runtime="coreml") as model:
        with pytest.raises(NotSupported, match="looks changes the vision tower"):
            Session(model, adapter=adapter)
        assert Session(model).ask("What is this?", max_tokens=2).tokens


def drop(model: Any) -> None:
    del model.description.state[-1]


def resize(name: str, dimension: int, size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (port,) = (port for port in model.description.state if port.name == name)
        port.type.stateType.arrayType.shape[dimension] = size

    return change


@pytest.mark.parametrize(
    "change",
    [
        drop,
        resize("lora_a_q_proj", 0, 3),
        resize("lora_a_q_proj", 1, 16),
        resize("lora_b_down_proj", 1, 16),
    ],
)
def test_states_that_do_not_go_together(
    smolvlm_coreml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None],
) -> None:
    install(monkeypatch)
    files = coreml_files(smolvlm_coreml)
    package = shutil.copytree(files.roles["decoder"].parent, tmp_path / "decoder.mlpackage")
    program = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model = Model_pb2.Model()
    model.ParseFromString(program.read_bytes())
    assert {port.name for port in model.description.state} - {"k_cache", "v_cache"} == LORA_STATES
    change(model)
    program.write_bytes(model.SerializeToString())
    roles = {**files.roles, "decoder": package / "Manifest.json"}
    with pytest.raises(ModelCorrupt, match="its states for adapters don't go together"):
        CoreMLLanguageModel(ModelFiles("other", package, roles), OPTIONS)
