from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from judged import SUBJECT, as_row, judged, write

from edgevlm.errors import ModelCorrupt, UsageError
from edgevlm.messages import ActiveAdapter
from edgevlm.routing.answers import read_answer, read_answers, tabulate
from edgevlm.routing.calibration import Calibration, Subject
from edgevlm.routing.certificate import Certificate, Refusal
from edgevlm.routing.confidence import Confidence
from edgevlm.routing.evaluation import evaluate
from edgevlm.routing.fitting import calibrate, split, with_certificate
from edgevlm.routing.recalibration import recalibrate
from edgevlm.routing.shelf import Shelf
from edgevlm.settings import load_settings

TABLE = tabulate(judged(1600))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    fitting, calibrating, _ = (TABLE.part(rows) for rows in split(TABLE.pictures))
    made = calibrate(SUBJECT, fitting, calibrating, version="1")
    return with_certificate(made, fitting, calibrating, risk=0.2)[0]


def test_a_picture_is_in_one_part_only() -> None:
    parts = split(TABLE.pictures, (0.3, 0.2, 0.5), seed=3)
    pictures = [{TABLE.pictures[i] for i in rows} for rows in parts]
    assert [len(p) / 800 for p in pictures] == pytest.approx([0.3, 0.2, 0.5], abs=0.05)
    assert not (pictures[0] & pictures[1] | pictures[0] & pictures[2] | pictures[1] & pictures[2])
    assert sorted(np.concatenate(parts)) == list(range(1600))
    assert not np.array_equal(parts[0], split(TABLE.pictures, (0.3, 0.2, 0.5), seed=4)[0])


def test_more_pictures_move_none_into_another_part() -> None:
    few, all_of_them = TABLE.pictures[:600], TABLE.pictures
    for some, whole in zip(split(few), split(all_of_them), strict=True):
        assert some.tolist() == [row for row in whole if row < 600]


def test_confidence_is_near_the_truth_on_other_pictures(calibration: Calibration) -> None:
    evaluation = evaluate(calibration, tabulate(judged(2000, seed=1)), draws=50)
    figures = evaluation.figures["confidence"]
    assert figures["auroc"][0] > 0.7
    # 15 bins of 133 answers are off by 0.03 by chance alone.
    assert figures["calibration_error"][0] < 0.08
    assert figures["apgr_ratio"][0] == pytest.approx(2 * figures["auroc"][0] - 1, abs=1e-6)
    assert evaluation.figures["oracle"]["apgr_ratio"][0] == pytest.approx(1.0)
    assert evaluation.figures["random"]["auroc"][0] == pytest.approx(0.5, abs=0.05)


def test_it_comes_back_from_its_json_as_it_was(calibration: Calibration) -> None:
    text = calibration.to_json()
    again = Calibration.of_json(text)
    assert again.to_json() == text
    assert again.whole.certificate == calibration.whole.certificate
    assert again.whole.score(TABLE.features) == pytest.approx(
        calibration.whole.score(TABLE.features), abs=1e-3
    )


def test_the_shelf_gives_each_subject_its_own(calibration: Calibration) -> None:
    shelf = Shelf(load_settings())
    assert shelf.find(SUBJECT) is None
    shelf.put(calibration)
    assert shelf.find(SUBJECT) is not None
    for other in (
        Subject.of("a-model", 3, SUBJECT.quantization),
        Subject.of("a-model", 2, "decoder q8, vision fp16"),
        Subject.of("a-model", 2, SUBJECT.quantization, [ActiveAdapter("shapes")]),
        Subject.of("b-model", 2, SUBJECT.quantization),
    ):
        assert shelf.find(other) is None
    silent = [ActiveAdapter("shapes", 0.0)]
    assert shelf.find(Subject.of("a-model", 2, SUBJECT.quantization, silent)) is not None
    assert shelf.remove(SUBJECT)
    assert not shelf.remove(SUBJECT)


def test_what_is_below_the_certified_threshold_is_unsure(calibration: Calibration) -> None:
    certificate = calibration.whole.certificate
    assert certificate is not None
    confidence = Confidence(calibration)
    answers = judged(300, seed=2)
    judged_as = [confidence.judge(a.tokens, a.asked) for a in answers]
    assert {v.unsure for v in judged_as} == {True, False}
    assert all(v.unsure == (v.score < certificate.threshold) for v in judged_as)
    kept = [not a.right for a, v in zip(answers, judged_as, strict=True) if not v.unsure]
    assert np.mean(kept) <= 0.2


def test_an_answer_that_is_coming_is_judged_by_its_first_tokens(calibration: Calibration) -> None:
    confidence = Confidence(calibration)
    answer = judged(1)[0]
    assert confidence.judge_so_far((), answer.asked) is None
    first = confidence.judge_so_far(answer.tokens[:1], answer.asked)
    assert first is not None
    assert 0 < first.confidence < 1


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(format=99),
        lambda values: values.update(features=["another"]),
        lambda values: values.pop("whole"),
        lambda values: values["whole"].update(weights=[1.0]),
        lambda values: values["whole"].update(values="no numbers"),
        lambda values: values["whole"].update(certificates=[{}]),
    ],
)
def test_a_calibration_that_is_none_is_refused(
    change, calibration: Calibration, home: Path
) -> None:
    shelf = Shelf(load_settings())
    path = shelf.put(calibration)
    values = json.loads(calibration.to_json())
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelCorrupt, match="can't be read"):
        shelf.find(SUBJECT)
    path.write_bytes(b"\xff\x00not JSON")
    with pytest.raises(ModelCorrupt):
        Confidence.for_model("a-model", 2, SUBJECT.quantization)


def test_a_file_of_answers_says_what_they_are(tmp_path: Path) -> None:
    answers = judged(20)
    assert read_answers(write(tmp_path / "answers.jsonl", answers)) == answers


def test_the_edition_is_the_catalogs_where_a_line_says_none(tmp_path: Path) -> None:
    row = as_row(judged(1)[0])
    row.update(model="edgevlm-tiny")
    del row["edition"]
    assert read_answer(row, "line 1", tmp_path).subject.edition == 5
    row.update(model="a-model")
    assert read_answer(row, "line 1", tmp_path).subject.edition is None


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"right": 1}', '{"right": true, "question": "What?"}', '"text"']
)
def test_a_line_that_is_no_answer_is_named(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", judged(3))
    path.write_text(path.read_text() + line, encoding="utf-8")
    with pytest.raises(UsageError, match="Line 4"):
        read_answers(path)


def test_few_answers_are_refused_and_so_are_those_of_two_models() -> None:
    shelf = Shelf(load_settings())
    few = judged(60)
    with pytest.raises(UsageError, match="are needed"):
        recalibrate(few, shelf, risk=0.1, delta=0.05, refit=True)
    with pytest.raises(UsageError, match="no answers"):
        recalibrate([], shelf, risk=0.1, delta=0.05, refit=True)
    other = Subject.of("b-model", None, "q8")
    mixed = [*few, type(few[0])(other, few[0].tokens, few[0].asked, True, "x", "y")]
    with pytest.raises(UsageError, match="b-model"):
        tabulate(mixed)


def test_a_known_confidence_is_certified_on_answers_of_ones_own(calibration: Calibration) -> None:
    shelf = Shelf(load_settings())
    shelf.put(calibration)
    certified, outcome = recalibrate(
        judged(1200, seed=5), shelf, risk=0.25, delta=0.05, refit=False
    )
    assert isinstance(outcome, Certificate)
    assert certified.whole.certificates == (outcome,)
    assert certified.whole.score.weights == pytest.approx(
        calibration.whole.score.weights, rel=1e-4, abs=1e-6
    )
    kept, refusal = recalibrate(judged(80, seed=6), shelf, risk=0.02, delta=0.05, refit=False)
    assert isinstance(refusal, Refusal)
    assert kept.whole.certificates == ()
