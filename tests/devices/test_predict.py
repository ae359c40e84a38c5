"""Memory and time follow their formulas, and move the right way."""

from __future__ import annotations

import pytest

from edgevlm.devices.costs import footprint
from edgevlm.devices.outlook import OtherDevice, Sizes
from edgevlm.devices.plan import largest_that_fits, make_plan, require_fit
from edgevlm.devices.predict import largest_context, predict_memory, predict_timing
from edgevlm.devices.profiles import find_profile
from edgevlm.devices.shape import (
    DecoderShape,
    ModelShape,
    VisionShape,
    Weights,
    Workload,
    usual_workload,
)
from edgevlm.devices.target import Target, profile_target
from edgevlm.engine.placement import Placement
from edgevlm.errors import DoesNotFit

SMOLLM2_135M = DecoderShape(30, 576, 1536, 9, 3, 64, 49_152)
SIGLIP = VisionShape.transformer(
    tile=512,
    patch=16,
    layers=12,
    hidden=768,
    intermediate=3072,
    heads=12,
    scale_factor=4,
    longest_edge=2048,
)
SHAPE = ModelShape(SMOLLM2_135M, SIGLIP, 8192)
WEIGHTS = Weights(100_000_000, 190_000_000, bits={"decoder": "q4", "vision": "fp16"})
ONNX = Placement("onnx", "onnx")
LLAMACPP = Placement("llamacpp", "llamacpp")


def target(**more: float) -> Target:
    figures = {"memory": 10**10, "gflops": 200.0, "bandwidth": 50.0, **more}
    return Target(
        name="a machine",
        title="A machine",
        memory=int(figures["memory"]),
        gpu_memory=0,
        gflops={"cpu": figures["gflops"]},
        bandwidth=figures["bandwidth"],
        gpu_bandwidth=0.0,
        unified=False,
    )


def test_sizes_are_those_of_the_published_models() -> None:
    # 134.5 million parameters, of which 28.3 are the embeddings that the head shares.
    assert SMOLLM2_135M.layer_weights + SMOLLM2_135M.head_weights == pytest.approx(
        134.5e6, rel=1e-3
    )
    assert SIGLIP.weights == pytest.approx(86e6, rel=0.01)
    assert SIGLIP.tokens == 64


def test_the_cache_follows_its_formula() -> None:
    for placement, width in ((ONNX, 4), (LLAMACPP, 2)):
        assert footprint(placement.language).cache_bytes == width
        memory = predict_memory(SHAPE, WEIGHTS, placement, 1000)
        assert memory.cache == 2 * 30 * 3 * 64 * width * 1000
        assert memory.total > WEIGHTS.total


def test_a_placement_of_two_runtimes_counts_one_interpreter() -> None:
    both = predict_memory(SHAPE, WEIGHTS, Placement("onnx", "llamacpp"), 1000).runtime
    alone = [predict_memory(SHAPE, WEIGHTS, p, 1000).runtime for p in (ONNX, LLAMACPP)]
    assert max(alone) < both < sum(alone)


def test_more_bandwidth_decodes_faster_and_more_compute_prefills_faster() -> None:
    work = usual_workload(SHAPE)
    usual = predict_timing(SHAPE, WEIGHTS, ONNX, work, target())
    wide = predict_timing(SHAPE, WEIGHTS, ONNX, work, target(bandwidth=100.0))
    strong = predict_timing(SHAPE, WEIGHTS, ONNX, work, target(gflops=400.0))
    assert wide.step < usual.step
    assert wide.vision == usual.vision
    assert strong.prefill < usual.prefill
    assert strong.step == usual.step
    assert usual.answer == pytest.approx(usual.first_token + 59 * usual.step)


def test_a_small_model_is_bound_by_its_operations() -> None:
    fast = target(bandwidth=1e6, gflops=1e6)
    step = predict_timing(SHAPE, WEIGHTS, ONNX, usual_workload(SHAPE), fast).step
    assert step == pytest.approx(30 * 30e-6, rel=0.01)


def test_the_usual_question_is_of_300_tokens() -> None:
    assert usual_workload(SHAPE) == Workload(prompt=300, tiles=4, new=60, context=512)
    assert usual_workload(ModelShape(SMOLLM2_135M, None, 8192)).tiles == 0


def test_the_longest_context_that_fits_does() -> None:
    memory = predict_memory(SHAPE, WEIGHTS, ONNX, 3000).total
    longest = largest_context(SHAPE, WEIGHTS, ONNX, memory)
    assert predict_memory(SHAPE, WEIGHTS, ONNX, longest).total <= memory
    assert longest >= 2500
    assert largest_context(SHAPE, WEIGHTS, ONNX, 10**6) == 0
    assert largest_context(SHAPE, WEIGHTS, ONNX, 10**12) == 8192


def test_a_model_that_does_not_fit_is_refused_with_ways_out() -> None:
    sizes = Sizes("big", SHAPE, lambda placement: WEIGHTS)
    room = predict_memory(SHAPE, WEIGHTS, ONNX, 2000).total
    require_fit(sizes, ONNX, 1000, room, dict)
    with pytest.raises(DoesNotFit) as caught:
        require_fit(sizes, ONNX, None, room, lambda: {"small": 10, "middle": 100, "huge": 10**12})
    assert "big on onnx wants" in str(caught.value)
    hint = caught.value.hint or ""
    assert "middle is the largest model that would fit." in hint
    assert "EDGEVLM_CONTEXT_LENGTH=" in hint
    # Of an unknown model nothing is said.
    require_fit(Sizes("unknown", None, lambda placement: None), ONNX, None, 0, dict)


def test_without_a_wish_the_context_is_as_long_as_memory_allows() -> None:
    sizes = Sizes("big", SHAPE, lambda placement: WEIGHTS)
    room = predict_memory(SHAPE, WEIGHTS, ONNX, 3000).total
    shorter = require_fit(sizes, ONNX, None, room, dict)
    assert shorter == 2816
    assert require_fit(sizes, ONNX, shorter, room, dict) == shorter
    assert require_fit(sizes, ONNX, None, 10**12, dict) is None
    with pytest.raises(DoesNotFit):
        require_fit(sizes, ONNX, 3100, room, dict)


def test_a_model_of_unknown_shape_is_held_to_its_weights() -> None:
    sizes = Sizes("huge", None, lambda placement: Weights(10**12, 0))
    with pytest.raises(DoesNotFit):
        require_fit(sizes, ONNX, None, 10**10, dict)


def test_the_largest_that_fits() -> None:
    assert largest_that_fits({"a": 5, "b": 9, "c": 20}, 10) == "b"
    assert largest_that_fits({"a": 5}, 1) is None


def test_a_plan_tells_every_reason() -> None:
    outlook = OtherDevice(Sizes("model", SHAPE, lambda p: WEIGHTS), find_profile("pc-16gb"))
    offers = [ONNX, LLAMACPP, Placement("mlx", "mlx")]
    work = Workload(prompt=300, tiles=4, new=60, context=8192)
    plan = make_plan(outlook, offers, work, unpublished=[Placement("onnx", "coreml")])
    assert plan.chosen is not None
    reasons = {str(each.placement): each.refused or "" for each in plan.rejected}
    (other,) = {"onnx", "llamacpp"} - {str(plan.chosen.placement)}
    assert reasons[other].startswith("slower: ")
    assert reasons["mlx"] == "mlx does not run on this device"
    assert reasons["onnx+coreml"].startswith("no files are published")


def test_a_plan_takes_what_is_here_before_what_is_sooner() -> None:
    outlook = OtherDevice(Sizes("model", SHAPE, lambda p: WEIGHTS), find_profile("pc-16gb"))
    work = Workload(prompt=300, tiles=4, new=60, context=8192)
    sooner = make_plan(outlook, [ONNX, LLAMACPP], work).chosen
    assert sooner is not None
    (other,) = {ONNX, LLAMACPP} - {sooner.placement}
    plan = make_plan(outlook, [ONNX, LLAMACPP], work, here=[other])
    assert plan.chosen is not None
    assert plan.chosen.placement == other
    assert (plan.rejected[0].refused or "").startswith("faster, but not fetched: ")


def test_a_mac_decodes_on_its_graphics_processor() -> None:
    mac = profile_target(find_profile("apple-m4"))
    assert mac.processor("mlx") == mac.processor("llamacpp") == "gpu"
    assert mac.processor("coreml") == "npu"
    assert mac.processor("onnx") == "cpu"
    work = usual_workload(SHAPE)
    timing = predict_timing(SHAPE, WEIGHTS, Placement("mlx", "mlx"), work, mac)
    assert timing.estimated
    assert timing.tokens_per_second > 100
