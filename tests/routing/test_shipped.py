"""The calibrations that ship are of models that ship, and what they were made from is here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from judged import token

from edgevlm.models.catalog import load_catalog
from edgevlm.routing.calibration import Calibration
from edgevlm.routing.confidence import Confidence
from edgevlm.routing.curves import auroc, calibration_error
from edgevlm.routing.features import Asked
from edgevlm.routing.fitting import calibrate, split
from edgevlm.routing.shelf import SHIPPED, Shelf
from edgevlm.settings import load_settings

sys.path.append(str(Path(__file__).parents[2] / "recipes" / "routing"))
import packed

Q4 = "decoder q4, vision fp16"


def shipped() -> Calibration:
    found = Shelf(load_settings()).find(SUBJECT)
    assert found is not None
    return found


SUBJECT, TABLE = packed.unpack(Path(packed.__file__).with_name("answers.npz"))


def test_each_is_of_an_edition_that_ships() -> None:
    catalog = load_catalog()
    for calibration in Shelf(load_settings()).shipped():
        subject = calibration.subject
        assert subject.edition == catalog.entries[subject.model].edition


def test_the_shipped_one_is_found_by_what_a_reply_says() -> None:
    confidence = Confidence.for_model("edgevlm-tiny", 5, Q4)
    assert confidence is not None
    assert Confidence.for_model("edgevlm-tiny", 4, Q4) is None
    asked = Asked("Is there a dog in the picture?", None, 150, 102)
    sure = confidence.judge([token(-0.001), token(-0.0001, "")], asked)
    doubtful = confidence.judge([token(-0.6), token(-0.7), token(-0.0001, "")], asked)
    assert 0 < doubtful.confidence < sure.confidence < 1


def test_it_is_what_the_recipe_makes_of_its_data() -> None:
    fitting, calibrating, test = (TABLE.part(rows) for rows in split(TABLE.pictures))
    made = calibrate(SUBJECT, fitting, calibrating, version="1")
    ours = shipped()
    assert ours.data.fitted == len(fitting)
    assert ours.data.calibrated == len(calibrating)
    scores = ours.whole.score(test.features)
    assert scores == pytest.approx(made.whole.score(test.features), abs=0.05)
    told = ours.whole.probability(scores)
    assert auroc(scores, test.right) == pytest.approx(ours.figures["auroc"], abs=0.005)
    off = calibration_error(told, test.right)
    assert off == pytest.approx(ours.figures["calibration_error"], abs=0.01)
    assert off < 0.1


def test_it_ranks_better_than_what_others_route_by() -> None:
    _, _, test = (TABLE.part(rows) for rows in split(TABLE.pictures))
    ours = auroc(shipped().whole.score(test.features), test.right)
    assert ours > max(auroc(values, test.right) for values in test.baselines.values())


def test_its_certificate_holds_on_the_answers_that_had_no_part_in_it() -> None:
    _, _, test = (TABLE.part(rows) for rows in split(TABLE.pictures))
    for certificate in shipped().whole.certificates:
        above = shipped().whole.score(test.features) >= certificate.threshold
        assert np.mean(~test.right[above]) <= certificate.bound


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 300_000
