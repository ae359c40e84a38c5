"""Videos in the SmolVLM2 layout: the same moments, words, ids and pixels as transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from smolvlm_factory import make_processor_files
from smolvlm_reference import Case, Pixels, ids_of, make_case

from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import ModelCorrupt
from edgevlm.families import load_family
from edgevlm.families.base import Turn, VideoLayout
from edgevlm.families.video import watch

Picture = Callable[[int, int], Pixels]
WORDS = {1: "one", 3: "three", 13: "thirteen", 20: "twenty", 21: "twenty-one", 50: "fifty"}
SAMPLING = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 96}}


def video_folder(folder: Path, sampling: object = SAMPLING) -> Path:
    """A model folder as SmolVLM2's repositories have it, with `video_sampling`."""
    make_processor_files(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"video_sampling": sampling}))
    return folder


@pytest.fixture(scope="module")
def video_case(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Case]) -> Case:
    return make_case(video_folder(tmp_path_factory.mktemp("video") / "model"))


def layout_of(case: Case) -> VideoLayout:
    layout = case.family.video
    assert layout is not None
    return layout


def reference_ids(
    case: Case, times: list[float], duration: float, question: str, before: str
) -> list[int]:
    content = [{"type": "text", "text": before}] if before else []
    content += [{"type": "video"}, {"type": "text", "text": question}]
    text = case.reference.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    shown = {
        "pixel_values": np.empty((1, len(times))),
        "video_metadata": [SimpleNamespace(fps=10, timestamps=times, duration=duration)],
    }
    text = text.replace("<video>", case.reference.replace_video_token(shown, 0))
    ids: list[int] = case.reference.tokenizer(text)["input_ids"]
    return ids


@pytest.mark.parametrize("count", list(WORDS))
@pytest.mark.parametrize(
    ("question", "before"), [("What happens?", ""), ("\nAnd 12?", "Look: "), (" é", "")]
)
def test_the_same_ids(
    video_case: Case,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    question: str,
    before: str,
) -> None:
    monkeypatch.setattr(
        "transformers.models.smolvlm.processing_smolvlm.num2words", WORDS.__getitem__
    )
    layout = layout_of(video_case)
    frame = layout.preprocess(picture(80, 60))
    times = [71.4 * i for i in range(count)]
    duration = times[-1] + 3601.9
    content = layout.lay_out([frame] * count, times, duration)
    turn = Turn("user", (*([before] if before else []), *content, question))
    prompt = video_case.family.render([turn])
    expected = reference_ids(video_case, times, duration, question, before)
    assert ids_of(prompt, video_case.image_id) == expected
    assert prompt.image_tokens == count * frame.n_tokens


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (30, 200)])
def test_the_same_pixels(video_case: Case, picture: Picture, size: tuple[int, int]) -> None:
    """Frames go the way of pictures that are not split, from a size of their own."""
    pixels = picture(*size)
    reference = video_case.reference.image_processor(
        [Image.fromarray(pixels)],
        do_image_splitting=False,
        size={"longest_edge": 96},
        return_tensors="np",
    )["pixel_values"][0]
    frame = layout_of(video_case).preprocess(pixels)
    assert frame.grid == (0, 0)
    np.testing.assert_allclose(frame.pixel_values, reference, atol=1e-5)
    assert frame.key != video_case.family.preprocess(pixels, "low").key


@pytest.mark.parametrize("most", [1, 7, 50])
@pytest.mark.parametrize("fps", [10.0, 24.0, 30000 / 1001])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.3, 9.0, 30.0, 61.5, 4000.0])
def test_the_same_moments(video_case: Case, seconds: float, fps: float, most: int) -> None:
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
    from transformers.video_utils import VideoMetadata

    total = round(seconds * fps)
    metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
    processor: Any = SimpleNamespace(num_frames=64, fps=1)
    indices = SmolVLMVideoProcessor.sample_frames(processor, metadata, num_frames=most, fps=1)
    times = layout_of(video_case).sample(total / fps, fps, most)
    assert list(times) == pytest.approx([index / fps for index in indices])


def test_a_video_without_a_length_shows_one_frame(video_case: Case) -> None:
    assert layout_of(video_case).sample(0.0, 25.0, 50) == (0.0,)


def test_the_models_own_sampling_counts(tmp_path: Path) -> None:
    sampling = {"fps": 2, "max_frames": 5, "video_size": {"longest_edge": 64}}
    layout = load_family(video_folder(tmp_path / "m", sampling)).video
    assert layout is not None
    assert layout.sample(2.0, 10.0, 50) == (0.0, 0.6, 1.2, 1.9)
    assert len(layout.sample(60.0, 10.0, 50)) == 5


@pytest.mark.parametrize(
    "sampling",
    [
        7,
        {"fps": 0, "max_frames": 5, "video_size": {"longest_edge": 64}},
        {"fps": 1, "max_frames": 0, "video_size": {"longest_edge": 64}},
        {"fps": 1, "max_frames": 10**9, "video_size": {"longest_edge": 64}},
        {"fps": 1, "max_frames": 5, "video_size": {"longest_edge": 10**9}},
        {"fps": 1, "max_frames": 5},
    ],
)
def test_a_sampling_that_makes_no_sense(tmp_path: Path, sampling: object) -> None:
    with pytest.raises(ModelCorrupt, match=r"preprocessor_config\.json"):
        load_family(video_folder(tmp_path / "m", sampling))


def test_the_first_smolvlm_sees_no_videos(cases: dict[str, Case]) -> None:
    assert cases["idefics3"].family.video is None
    assert cases["smolvlm"].family.video is not None


class Film:
    """A `Video` of grey frames, each as bright as its second."""

    duration, fps = 120.0, 10.0

    def __init__(self) -> None:
        self.decoded: list[float] = []

    def frames(self, times: tuple[float, ...]) -> Any:
        for moment in times:
            self.decoded.append(moment)
            yield moment, np.full((8, 8, 3), int(moment), np.uint8)


@pytest.mark.parametrize(("room", "expected"), [(1000, 50), (50, 50), (49, 49), (7, 7), (0, 1)])
def test_as_many_frames_as_there_is_room_for(video_case: Case, room: int, expected: int) -> None:
    film: Any = Film()

    def fits(content: tuple[str | ImageInput, ...]) -> bool:
        return sum(not isinstance(part, str) for part in content) <= room

    content = watch(layout_of(video_case), film, fits)
    frames = [part for part in content if not isinstance(part, str)]
    assert len(frames) == len(film.decoded) == expected
    steps = np.diff(film.decoded)
    assert expected < 3 or steps.max() - steps.min() < 0.2  # evenly, over all of it
    assert expected < 3 or film.decoded[-1] > 115
    assert len({frame.key for frame in frames}) == expected
