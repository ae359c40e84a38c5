"""The vision heads: the nodes say what the torch modules say, and training them helps."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from calibrate import best_line, best_temperature, matches, overlaps
from captions import load_concepts
from classifier import Array
from detector import GRID, Detector, targets
from detector import loss as detector_loss
from drawn_views import draw_view
from features import GLIMPSE, PICTURE, Extractor, normalised, squares
from heads import FEATURES, Surfaces, Tail
from looks import load_looks, save_looks
from numpy.typing import NDArray
from scenes import Scenes
from seen import MAX_THINGS, SURFACES, Look, Scene, Thing
from stock import Stock
from train_scenes import (
    load_scenes,
    make_scenes,
    make_swatches,
    train_detector,
    train_surfaces,
)
from train_tail import tail_features, train_tail
from train_views import drawings
from views import look, open_views, part, untrained_views

N_CONCEPTS = 30


@pytest.fixture(scope="module")
def encoder() -> dict[str, Array]:
    """A network of the encoder's shapes, whose weights are noise of a size that keeps signals."""
    rng = np.random.default_rng(0)
    state: dict[str, Array] = {}

    def add(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        scale = (2 / np.prod(shape[1:])) ** 0.5
        state[f"{conv}.weight"] = rng.normal(0, scale, shape).astype(np.float32)
        for name, value in (("weight", 1), ("bias", 0.1), ("running_mean", 0), ("running_var", 1)):
            state[f"{norm}.{name}"] = np.full(shape[0], value, np.float32)

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    kernels = [3, 3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 3]
    widths = [16, 24, 24, 24, 48, 48, 48, 88, 88, 88, 88, *[120] * 4, *[208] * 5, 352]
    before = 32
    for i, (kernel, width) in enumerate(zip(kernels, widths, strict=True)):
        name, inner = f"_blocks.{i}", before
        if i:
            # Narrower than the real one, which is what makes this quick.
            inner = 2 * before
            add(f"{name}._expand_conv", f"{name}._bn0", (inner, before, 1, 1))
        add(f"{name}._depthwise_conv", f"{name}._bn1", (inner, 1, kernel, kernel))
        add(f"{name}._project_conv", f"{name}._bn2", (width, inner, 1, 1))
        before = width
    add("_conv_head", "_bn1", (FEATURES, before, 1, 1))
    state["_fc.weight"] = rng.normal(0, 0.03, (1000, FEATURES)).astype(np.float32)
    state["_fc.bias"] = np.zeros(1000, np.float32)
    return state


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    scenes = Scenes(held_out=False, cutouts=(), photos=())
    rng = np.random.default_rng(1)
    return np.stack([scenes.draw(rng, "things").pixels for _ in range(2)])


def test_the_graph_says_what_the_modules_say(
    encoder: dict[str, Array], pixels: NDArray[np.uint8]
) -> None:
    views = untrained_views(encoder, N_CONCEPTS)
    seen = look(open_views(encoder, views), pixels[0])
    extractor = Extractor(encoder)
    fine, middle, coarse, pooled = extractor.whole(normalised(pixels[:1]))
    with torch.no_grad():
        detector = Detector()
        detector.load_state_dict(_tensors(part(views, "detector.")))
        out = detector(*(torch.from_numpy(maps) for maps in (fine, middle, coarse)))[0].numpy()
        surest = 1 / (1 + np.exp(-out[0].max()))
        assert seen.objectness[0] == pytest.approx(surest, rel=0.01)
        glimpses, swatches = extractor.glimpses(normalised(pixels[:1]), seen.boxes)
        features = Tail(encoder)(torch.from_numpy(glimpses))
        surfaces = Surfaces()
        surfaces.load_state_dict(_tensors(part(views, "surfaces.")))
        expected = surfaces(torch.from_numpy(swatches), features).numpy()
    _near(seen.thing_surfaces, expected)
    _near(seen.thing_concepts, features.numpy() @ views["concepts.weight"].T)
    _near(seen.sorts, (pooled @ views["sorts.weight"].T)[0])
    _near(seen.classes, (pooled @ encoder["_fc.weight"].T)[0])


def test_a_batch_is_seen_as_its_pictures_are(
    encoder: dict[str, Array], pixels: NDArray[np.uint8]
) -> None:
    session = open_views(encoder, untrained_views(encoder, N_CONCEPTS))
    names = [output.name for output in session.get_outputs()]
    assert names == [field.name for field in fields(Look)][: len(names)]
    together = session.run(names, {"pixels": normalised(pixels)})
    for i, picture in enumerate(pixels):
        alone = look(session, picture)
        for name, values in zip(names, together, strict=True):
            _near(values[i], getattr(alone, name))


def _tensors(arrays: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _near(found: Array, expected: Array) -> None:
    """Weights are stored at 16 bits."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max() + 1e-4)


def test_glimpses_stay_within_the_picture_and_hold_their_boxes() -> None:
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 0.8, (200, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 1, (200, 2)) * (1 - low)], axis=1)
    found = squares(boxes.astype(np.float32))
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    np.testing.assert_allclose(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1], atol=1e-5)
    assert (found[:, :2] <= boxes[:, :2] + 1e-5).all()
    assert (found[:, 2:] >= boxes[:, 2:] - 1e-5).all()


def test_a_detector_is_taught_where_the_middle_is_and_how_far_the_sides_are() -> None:
    box = np.array([[0.2, 0.3, 0.6, 0.5]], np.float32)
    heat, numbers, weight = targets([box])
    row, column = np.unravel_index(int(heat[0].argmax()), (GRID, GRID))
    assert (row, column) == (13, 13)
    x, y, width, height = numbers[0, :, row, column].tolist()
    assert ((column + 0.5 + x) / GRID, (row + 0.5 + y) / GRID) == pytest.approx((0.4, 0.4))
    assert (0.25 * np.exp(width), 0.25 * np.exp(height)) == pytest.approx((0.4, 0.2))
    right = torch.cat([(heat[:, None] * 20 - 14), numbers], dim=1)
    wrong = torch.cat([-heat[:, None] * 20, numbers], dim=1)
    assert detector_loss(right, heat, numbers, weight) < detector_loss(wrong, heat, numbers, weight)


def test_boxes_are_matched_to_things_once_each() -> None:
    boxes = np.zeros((MAX_THINGS, 4), np.float32)
    boxes[:3] = (0.1, 0.1, 0.3, 0.3), (0.11, 0.1, 0.31, 0.3), (0.6, 0.6, 0.9, 0.9)
    nothing = np.zeros((MAX_THINGS, 1), np.float32)
    seen = Look(*[nothing[0]] * 3, boxes, nothing[:, 0], nothing, nothing, -1, 0.0)
    things = (Thing(1, 0, (0.6, 0.6, 0.9, 0.88)), Thing(2, 0, (0.1, 0.1, 0.3, 0.3)))
    assert matches(seen, Scene(1, things)).tolist() == [1, -1, 0, -1, -1]
    assert overlaps(boxes[:1], boxes[2:3])[0, 0] == 0


def test_probabilities_become_honest() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (4000, 10)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(10, p=row / row.sum()) for row in shares.astype(np.float64)])
    assert best_temperature(3 * logits, truth) == pytest.approx(3, rel=0.1)
    one = logits[:, 0]
    happens = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * one + 1)))
    assert best_line(one, happens) == pytest.approx((0.5, 1), abs=0.15)


def test_training_lowers_the_losses(encoder: dict[str, Array], tmp_path: Path) -> None:
    extractor = Extractor(encoder)
    scenes = Scenes(held_out=False, cutouts=(), photos=())

    def draw(rng: np.random.Generator) -> tuple[Scene, NDArray[np.uint8]]:
        sample = scenes.draw(rng, "things")
        return sample.scene, sample.pixels

    make_scenes(extractor, draw, 8, 4, tmp_path / "scenes")
    made = load_scenes(tmp_path / "scenes")
    assert len(made.maps) == np.isfinite(made.boxes[:, :, 0]).sum()
    assert made.surfaces.min() >= 0
    assert made.surfaces.max() <= len(SURFACES)
    _, losses = train_detector(made, 20, 5)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    n_concepts = len(load_concepts())
    maps, concepts = np.array(made.maps), np.array(made.concepts)
    _, _, losses = train_tail(encoder, maps, concepts, n_concepts, 20, 6)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_surfaces_are_learnt_from_single_things(encoder: dict[str, Array], tmp_path: Path) -> None:
    ground = np.random.default_rng(8).integers(0, 256, (200, 200, 3), np.uint8)
    stock = Stock([], load_concepts())
    make_swatches(Extractor(encoder), stock, [ground], 16, 9, tmp_path / "swatches.npz")
    with np.load(tmp_path / "swatches.npz") as made:
        maps, swatches, truth = (made[name] for name in ("maps", "swatches", "surfaces"))
    features = tail_features(Tail(encoder), maps)
    _, losses = train_surfaces(swatches, features, truth, 40, 10)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_drawn_glimpses_show_the_thing_before_some_ground() -> None:
    rng = np.random.default_rng(7)
    drawn = drawings([])
    ground = rng.integers(0, 256, (200, 300, 3), np.uint8)
    for index in range(12):
        rgba, _ = drawn.draw(rng, index)
        view = draw_view(rng, rgba, [rgba], [ground])
        assert view.shape == (GLIMPSE, GLIMPSE, 3)
        assert view.std() > 1


def test_looks_are_stored_with_their_scenes(
    encoder: dict[str, Array], pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    assert pixels.shape[1:] == (PICTURE, PICTURE, 3)
    session = open_views(encoder, untrained_views(encoder, N_CONCEPTS))
    scene = Scene(1, (Thing(3, -1, (0.25, 0.25, 0.5, 0.75)),), word="tea")
    samples = [(scene, look(session, picture)) for picture in pixels]
    save_looks(samples, tmp_path / "looks.npz")
    loaded = list(load_looks(tmp_path / "looks.npz"))
    assert [found for found, _ in loaded] == [scene, scene]
    for (_, found), (_, seen) in zip(loaded, samples, strict=True):
        np.testing.assert_array_equal(found.boxes, seen.boxes)
        np.testing.assert_allclose(found.classes, seen.classes, atol=0.05)
