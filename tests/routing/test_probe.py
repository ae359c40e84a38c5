from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from judged import SUBJECT, judged

from edgevlm.routing.answers import tabulate
from edgevlm.routing.calibration import Calibration
from edgevlm.routing.confidence import Confidence
from edgevlm.routing.evaluation import CONFIDENCE, PROBED, evaluate
from edgevlm.routing.fitting import calibrate, split, with_certificate
from edgevlm.routing.probe import PROBED as WIDTH
from edgevlm.routing.probe import LogitPool, centred, probed_ids

VOCABULARY, HIDDEN = 3000, 64
RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
ANSWERS = judged(1500)
# What the tokens don't tell: one direction of the hidden state knows whether an answer is right.
STATES = RNG.normal(size=(1500, HIDDEN)).astype(np.float32)
STATES[:, 0] = 3 * (2.0 * np.array([a.right for a in ANSWERS]) - 1) + STATES[:, 0]
LOGITS = STATES @ MATRIX.T


def table():
    pooled = centred(LOGITS[:, probed_ids(VOCABULARY)]).astype(np.float64)
    return replace(tabulate(ANSWERS), pooled=pooled)


@pytest.fixture(scope="module")
def fitted() -> tuple[Calibration, object]:
    fitting, calibrating, test = (table().part(r) for r in split(table().pictures))
    made = calibrate(SUBJECT, fitting, calibrating, version="1")
    return with_certificate(made, fitting, calibrating, risk=0.1)[0], test


def test_a_pool_is_the_mean_of_what_it_saw() -> None:
    pool = LogitPool()
    assert not pool.mean.any()
    for logits in LOGITS[:3]:
        pool.add(logits)
    seen = LOGITS[:3][:, probed_ids(VOCABULARY)]
    assert pool.steps == 3
    assert pool.mean == pytest.approx(centred(seen).mean(axis=0), abs=1e-4)
    assert pool.mean.shape == (WIDTH,)


def test_a_probe_reads_the_hidden_state_out_of_some_logits(fitted) -> None:
    calibration, test = fitted
    figures = evaluate(calibration, test, draws=20).figures
    assert figures[PROBED]["auroc"][0] > 0.95 > figures[CONFIDENCE]["auroc"][0]
    assert figures[PROBED]["calibration_error"][0] < 0.12


def test_an_answer_with_its_pool_is_judged_by_the_probe(fitted) -> None:
    confidence = Confidence(Calibration.of_json(fitted[0].to_json()))
    certificate = confidence.certificate
    assert certificate is not None
    right = []
    for answer, logits in zip(ANSWERS[:300], LOGITS, strict=False):
        pool = LogitPool()
        pool.add(logits)
        judged_so = confidence.judge(answer.tokens, answer.asked, pool)
        assert judged_so.unsure == (judged_so.score < certificate.threshold)
        right.append((judged_so.confidence > 0.5) == answer.right)
        alone = confidence.judge(answer.tokens, answer.asked, LogitPool())
        assert alone == confidence.judge(answer.tokens, answer.asked)
    assert np.mean(right) > 0.9
