"""Making a calibration out of judged answers, and asking for a certificate.

Pictures are split, never questions: a model that was fitted on one question about a picture knows
something about the next. One part fits the scores and sets the order of thresholds; another makes
scores into probabilities and tests the thresholds; what is left judges the outcome.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from edgevlm.errors import UsageError
from edgevlm.routing.answers import Table
from edgevlm.routing.arrays import Bools, Floats, Rows
from edgevlm.routing.calibration import Calibration, Data, Scale, Subject
from edgevlm.routing.certificate import (
    DELTA,
    Certificate,
    Refusal,
    certify,
    order_thresholds,
)
from edgevlm.routing.features import NAMES
from edgevlm.routing.probe import fit_probed
from edgevlm.routing.regression import Isotonic, Logistic, fit_logistic

# Shares of the pictures that fit, calibrate and test.
SHARES = (0.3, 0.2, 0.5)
# What a fit needs of right answers and of wrong ones.
LEAST_OF_EACH = 20
# An answer that is no likelier right than this isn't worth reading on.
HOPELESS = 0.2


def split(
    pictures: Sequence[str], shares: Sequence[float] = SHARES, *, seed: int = 0
) -> list[Rows]:
    """Rows of each part, all questions about one picture in the same."""
    names, ids = np.unique(np.asarray(pictures), return_inverse=True)
    places = np.array([_place(name, seed) for name in names])[ids]
    edges = np.cumsum(shares) / np.sum(shares)
    parts = np.searchsorted(edges[:-1], places, side="right")
    return [np.flatnonzero(parts == part) for part in range(len(shares))]


def _place(picture: str, seed: int) -> float:
    """From 0 to 1, the same whatever other pictures there are: more data moves none over."""
    digest = hashlib.sha256(f"{seed} {picture}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def calibrate(
    subject: Subject, fitting: Table, calibrating: Table, *, version: str, digest: str = ""
) -> Calibration:
    """Fit on one part, make probabilities on another. Raises UsageError for too few answers."""
    for part in (fitting, calibrating):
        require_enough(part)
    counts = len(fitting) + len(calibrating)
    return Calibration(
        subject,
        version,
        _scale(fitting.features, fitting, calibrating.features, calibrating),
        Data(
            digest or fitting.digest,
            counts,
            len({*fitting.pictures, *calibrating.pictures}),
            len(fitting),
            len(calibrating),
        ),
        _probed(fitting, calibrating),
        _prefixes(fitting, calibrating),
        {
            name: Isotonic.fit(values, calibrating.right)
            for name, values in calibrating.baselines.items()
        },
        _stops(calibrating),
    )


def require_enough(part: Table) -> None:
    """Raise UsageError unless there are LEAST_OF_EACH right and wrong answers."""
    rights = int(part.right.sum())
    for kind, count in (("right", rights), ("wrong", len(part) - rights)):
        if count < LEAST_OF_EACH:
            raise UsageError(
                f"A part of the data has {count} {kind} answers, and {LEAST_OF_EACH} are needed.",
                hint="Judge more answers; hard questions bring wrong ones.",
            )


def ask_certificate(
    score: Logistic, ordering: Table, testing: Table, *, risk: float, delta: float = DELTA
) -> Certificate | Refusal:
    """Thresholds in an order that `ordering` sets, which may have fitted the score, tested on
    `testing`, which may not."""
    of_ordering, of_testing = (score(_numbers(score, t)) for t in (ordering, testing))
    share = len(testing) / len(ordering)
    thresholds = order_thresholds(of_ordering, ordering.right, risk=risk, share=share)
    return certify(
        of_testing,
        testing.right,
        testing.pictures,
        thresholds.tolist(),
        risk=risk,
        delta=delta,
    )


def with_certificate(
    calibration: Calibration,
    ordering: Table,
    testing: Table,
    *,
    risk: float,
    delta: float = DELTA,
) -> tuple[Calibration, Certificate | Refusal]:
    """What `ask_certificate` gives for the features comes into force, if it is a certificate, and
    another for the probe, where the logits are there."""
    asked = partial(ask_certificate, ordering=ordering, testing=testing, risk=risk, delta=delta)
    outcome = asked(calibration.whole.score)
    changed = replace(calibration, whole=_certified(calibration.whole, outcome))
    if calibration.probed is not None and testing.pooled is not None:
        probed = _certified(calibration.probed, asked(calibration.probed.score))
        changed = replace(changed, probed=probed)
    return changed, outcome


def _certified(scale: Scale, outcome: Certificate | Refusal) -> Scale:
    if isinstance(outcome, Refusal):
        return scale
    return replace(scale, certificates=(outcome, *scale.certificates))


def _numbers(score: Logistic, table: Table) -> Floats:
    """What the score is of: the features, or these and the pooled logits."""
    if len(score.weights) == table.features.shape[1]:
        return table.features
    assert table.pooled is not None
    return np.hstack([table.features, table.pooled])


def _probed(fitting: Table, calibrating: Table) -> Scale | None:
    if fitting.pooled is None:
        return None
    score = fit_probed(fitting.features, fitting.pooled, fitting.right, fitting.pictures)
    scores = score(_numbers(score, calibrating))
    return Scale(score, Isotonic.fit(scores, calibrating.right))


def _prefixes(fitting: Table, calibrating: Table) -> dict[int, Scale]:
    """A scale for each length that enough longer answers, right and wrong, have begun with."""
    scales = {}
    for length, features in fitting.prefixes.items():
        used, tried = fitting.longer[length], calibrating.longer[length]
        fewest = min(_rarer(fitting.right[used]), _rarer(calibrating.right[tried]))
        if fewest < LEAST_OF_EACH:
            continue
        scales[length] = _scale(
            features[used],
            fitting.part(np.flatnonzero(used)),
            calibrating.prefixes[length][tried],
            calibrating.part(np.flatnonzero(tried)),
        )
    return scales


def _stops(calibrating: Table) -> dict[int, float]:
    """Of each length, the mean logprob of first tokens at which HOPELESS is reached; none where
    no answer is so."""
    stops = {}
    for length, features in calibrating.prefixes.items():
        used = calibrating.longer[length]
        if _rarer(calibrating.right[used]) < LEAST_OF_EACH:
            continue
        means = features[used, NAMES.index("logprob mean")]
        probability = Isotonic.fit(means, calibrating.right[used])
        low = probability.knots[probability.values <= HOPELESS]
        if len(low):
            stops[length] = float(low[-1])
    return stops


def _rarer(right: Bools) -> int:
    return int(min(right.sum(), (~right).sum()))


def _scale(
    features: Floats,
    fitting: Table,
    other: Floats,
    calibrating: Table,
) -> Scale:
    score = fit_logistic(features, fitting.right, fitting.pictures)
    return Scale(score, Isotonic.fit(score(other), calibrating.right))
