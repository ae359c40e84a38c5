"""What `edgevlm route calibrate` does with judged answers of a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevlm.routing.answers import Answer, Table, tabulate
from edgevlm.routing.calibration import Calibration
from edgevlm.routing.certificate import Certificate, Refusal
from edgevlm.routing.fitting import calibrate, split, with_certificate
from edgevlm.routing.shelf import Shelf

# Shares of the pictures that fit and that calibrate and test; without a fit, that set the order
# of thresholds and that test them.
FITTING, ORDERING = (0.5, 0.5), (0.25, 0.75)


def recalibrate(
    answers: Sequence[Answer], shelf: Shelf, *, risk: float, delta: float, refit: bool
) -> tuple[Calibration, Certificate | Refusal]:
    """Certify the calibration of the model that gave `answers`, on them; with `refit`, or where
    there is none, make it of them first. Nothing is kept.

    Raises UsageError for answers of several models, or too few to fit, and ModelCorrupt.
    """
    table = tabulate(answers)
    subject = answers[0].subject
    known = None if refit else shelf.find(subject)
    first, second = (table.part(rows) for rows in split(table.pictures, _shares(known)))
    if known is None:
        known = calibrate(subject, first, second, version=_version(table), digest=table.digest)
    # What was shown on other answers is no guarantee for these, and of these no logits are known.
    bare = replace(known, whole=replace(known.whole, certificates=()), probed=None)
    return with_certificate(bare, first, second, risk=risk, delta=delta)


def _shares(known: Calibration | None) -> tuple[float, float]:
    return FITTING if known is None else ORDERING


def _version(table: Table) -> str:
    return f"own-{table.digest[:8]}"
