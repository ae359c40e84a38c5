"""`edgevlm route`: how far local answers are trusted, and on what grounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.cli.nouns import command, json_option, make_table, print_json, print_table
from edgevlm.cli.route_log import log
from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from edgevlm.routing.calibration import Calibration
    from edgevlm.routing.certificate import Certificate, Refusal
    from edgevlm.routing.evaluation import Evaluation

EPILOG = """\b
Examples:
  edgevlm route status                          which models have a confidence, and how good
  edgevlm route calibrate --data answers.jsonl --risk 0.05
  edgevlm route eval --data answers.jsonl --out figures/

\b
Exit codes: 0 done, 2 wrong usage, too few answers or a risk that can't be had,
3 a calibration that can't be read.
"""
_FIGURES = ("auroc", "excess_aurc", "coverage_at_5%", "apgr_ratio", "recovered_at_25%")
data_option = click.option(
    "--data",
    "data",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Judged answers, a JSON object a line.",
)


@click.group(epilog=EPILOG)
def route() -> None:
    """Say how far local answers are trusted, and make that better."""


route.add_command(log)


@command(route, "status", "", "--json", short="Show which models have a confidence.")
@json_option
def status(as_json: bool) -> None:
    """Show the calibrations that ship and those made here, and their certificates."""
    from edgevlm.routing.shelf import Shelf
    from edgevlm.settings import load_settings

    settings = load_settings()
    shelf = Shelf(settings)
    own = list(shelf.own())
    made_here = {calibration.subject for calibration in own}
    found = [("here", c) for c in own]
    found += [("ships", c) for c in shelf.shipped() if c.subject not in made_here]
    rows = [_calibration_json(calibration, origin) for origin, calibration in found]
    if as_json:
        print_json({"route": settings.route, "calibrations": rows})
        return
    click.echo(f"Route {settings.route}.")
    if not rows:
        click.echo("No model has a calibration: its answers carry no confidence.")
        return
    table = make_table("of the answers of", "from", "answers", "AUROC", "certified")
    for (origin, calibration), row in zip(found, rows, strict=True):
        auroc = calibration.figures.get("auroc")
        table.add_row(
            calibration.subject.described,
            origin,
            str(row["data"]["answers"]),
            "-" if auroc is None else f"{auroc:.3f}",
            _certified(calibration.whole.certificate),
        )
    print_table(table)


@command(
    route,
    *("calibrate", "--data answers.jsonl --risk 0.05", "--data answers.jsonl --refit"),
    short="Certify a confidence, or fit one, to answers of yours.",
)
@data_option
@click.option("--risk", default=0.05, show_default=True, type=click.FloatRange(0.001, 0.5))
@click.option(
    "--certainty",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0.5, 0.9999),
    help="How surely the risk is kept.",
)
@click.option("--refit", is_flag=True, help="Fit the confidence anew, too.")
@json_option
def calibrate(data: Path, risk: float, certainty: float, refit: bool, as_json: bool) -> None:
    """Find the confidence above which local answers err at most in a share RISK of all, and
    certify it; below, they are `unsure`. A model without a confidence gets one first.

    A line of FILE is what `edgevlm chat --json --tokens` prints, with "question" and "right" (true
    or false); "picture" names what several questions are about, "image" is its file.
    """
    from edgevlm.routing.answers import read_answers
    from edgevlm.routing.certificate import Refusal
    from edgevlm.routing.recalibration import recalibrate
    from edgevlm.routing.shelf import Shelf
    from edgevlm.settings import load_settings

    shelf = Shelf(load_settings())
    calibration, outcome = recalibrate(
        read_answers(data), shelf, risk=risk, delta=1 - certainty, refit=refit
    )
    refused = isinstance(outcome, Refusal)
    if not refused or refit:
        shelf.put(calibration)
    if as_json:
        print_json(_outcome_json(calibration, outcome))
    elif not refused:
        click.echo(f"{calibration.subject.described}: {_certified(calibration.whole.certificate)}.")
    if isinstance(outcome, Refusal):
        raise UsageError(
            f"No certificate: {outcome.reason}",
            hint="Judge more answers, or ask for a larger --risk.",
        )


@command(
    route,
    *("eval", "--data answers.jsonl", "--data answers.jsonl --out figures/ --json"),
    short="Measure a confidence on answers of yours, and draw it.",
)
@data_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder for curves.png and curves.json.",
)
@json_option
def evaluate(data: Path, out: Path | None, as_json: bool) -> None:
    """Measure the confidence of the model that gave the answers of FILE, beside what others
    route by, with 95% intervals by picture. Use answers that it was not made from.

    With --out, draw cost against quality, risk against coverage, and reliability. A line's
    "strong_right" says whether a stronger model had it right; without, one that always is.
    """
    from edgevlm.routing.answers import read_answers, tabulate
    from edgevlm.routing.evaluation import evaluate as measure
    from edgevlm.routing.shelf import Shelf
    from edgevlm.settings import load_settings

    answers = read_answers(data)
    table = tabulate(answers)
    calibration = Shelf(load_settings()).find(answers[0].subject)
    if calibration is None:
        raise UsageError(
            f"{answers[0].subject.described} has no confidence.",
            hint="Make one of other answers: edgevlm route calibrate --data FILE --refit",
        )
    measured = measure(calibration, table)
    document = measured.to_dict()
    if out is not None:
        _write_curves(measured, document, out)
    if as_json:
        print_json(document)
    else:
        _tell(measured)


def _write_curves(measured: Evaluation, document: dict[str, Any], out: Path) -> None:
    import json

    from edgevlm.models.disk import disk_errors
    from edgevlm.routing.drawing import draw

    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        draw(measured, out / "curves.png")
        (out / "curves.json").write_text(json.dumps(document), encoding="utf-8")


def _tell(measured: Evaluation) -> None:
    table = make_table("ranked by", *(name.replace("_", " ") for name in _FIGURES), "ECE")
    for name, figures in measured.figures.items():
        shown = [_figure(figures.get(figure)) for figure in (*_FIGURES, "calibration_error")]
        table.add_row(name, *shown)
    right = measured.table.right
    click.echo(f"{len(right)} answers, {right.mean():.1%} right.")
    print_table(table)


def _figure(values: list[float] | None) -> str:
    if values is None:
        return "-"
    value, *ends = values
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def _calibration_json(calibration: Calibration, origin: str) -> dict[str, Any]:
    return {
        **calibration.subject.to_dict(),
        "origin": origin,
        "version": calibration.version,
        "data": calibration.data.to_dict(),
        "certificates": [_certificate_json(c) for c in calibration.whole.certificates],
        "figures": dict(calibration.figures),
    }


def _certificate_json(certificate: Certificate) -> dict[str, Any]:
    return {**certificate.to_dict(), "coverage": certificate.coverage}


def _outcome_json(calibration: Calibration, outcome: Certificate | Refusal) -> dict[str, Any]:
    from edgevlm.routing.certificate import Certificate

    certified = isinstance(outcome, Certificate)
    return {
        **calibration.subject.to_dict(),
        "certificate": _certificate_json(outcome) if isinstance(outcome, Certificate) else None,
        "reason": None if certified else getattr(outcome, "reason", None),
        "missing": None if certified else getattr(outcome, "missing", None),
    }


def _certified(certificate: Certificate | None) -> str:
    if certificate is None:
        return "nothing"
    return (
        f"at most {certificate.risk:.1%} wrong of the surest {certificate.coverage:.0%}"
        f" ({1 - certificate.delta:.0%} certain, {certificate.examples} answers)"
    )
