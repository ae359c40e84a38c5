"""Fit, calibrate, certify and test edgevlm-tiny's confidence on what collect.py has collected.

    python recipes/routing/fit.py                          # the figures
    python recipes/routing/fit.py --ship                   # and edgevlm/routing/calibrations/
    python recipes/routing/fit.py --strong onnx-shapes     # and what asking a stronger model gains
    python recipes/routing/fit.py --table recipes/routing/answers.npz   # of the features that ship

Pictures are split by a seed into 30% that fit, 20% that calibrate and 50% that test; nothing but
figures comes from the last. With --splits the whole is done anew on so many other splits, to
count how often the certificate is broken.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from packed import pack, unpack
from rows import tabled

from edgevlm.routing.answers import Table
from edgevlm.routing.calibration import Calibration, Subject
from edgevlm.routing.certificate import Certificate
from edgevlm.routing.drawing import draw
from edgevlm.routing.evaluation import CONFIDENCE, PROBED, Evaluation, evaluate
from edgevlm.routing.fitting import ask_certificate, calibrate, split, with_certificate
from edgevlm.routing.regression import fit_logistic
from edgevlm.routing.shelf import SHIPPED

RISKS = (0.10, 0.05)  # the strictest that is certified comes into force
FILE = {"onnx": "q4", "onnx+llamacpp": "q4_1", "onnx-shapes": "q4.shapes"}
VERSION = "1"


def fitted(subject: Subject, table: Table, seed: int = 0) -> tuple[Calibration, Table]:
    """The calibration of the first two parts, and the third."""
    fitting, calibrating, test = (table.part(rows) for rows in split(table.pictures, seed=seed))
    calibration = calibrate(subject, fitting, calibrating, version=VERSION, digest=table.digest)
    for risk in RISKS:
        calibration, outcome = with_certificate(calibration, fitting, calibrating, risk=risk)
        print(f"at {risk:.0%} risk: {outcome}")
    return calibration, test


def broken(table: Table, splits: int, risk: float) -> tuple[int, int, list[float]]:
    """How often a certificate was given, how often the test part erred more often than it
    allows, and the coverages."""
    given, worse, coverages = 0, 0, []
    for seed in range(1, splits + 1):
        fitting, calibrating, test = (table.part(r) for r in split(table.pictures, seed=seed))
        score = fit_logistic(fitting.features, fitting.right, fitting.pictures)
        outcome = ask_certificate(score, fitting, calibrating, risk=risk)
        if isinstance(outcome, Certificate):
            above = score(test.features) >= outcome.threshold
            given += 1
            worse += bool((~test.right[above]).mean() > risk)
            coverages.append(float(above.mean()))
    return given, worse, coverages


def report(evaluation: Evaluation) -> None:
    names = list(evaluation.figures[CONFIDENCE])
    print(f"\n| ranked by | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for method, figures in evaluation.figures.items():
        print(f"| {method} | {' | '.join(_shown(figures.get(name)) for name in names)} |")
    for method, tasks in evaluation.tasks.items():
        print(f"\n| {method}: task | answers | right | AUROC | ECE | by chance | bias |")
        print("|---" * 7 + "|")
        for task, told in tasks.items():
            cells = [told.get(n) for n in ("auroc", "calibration_error", "chance_error", "bias")]
            shown = " | ".join("-" if c is None else f"{c:.3f}" for c in cells)
            print(f"| {task} | {told['answers']} | {told['right']:.1%} | {shown} |")


def _shown(values: list[float] | None) -> str:
    if values is None:
        return "-"
    value, *ends = values
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def ship(calibration: Calibration, evaluation: Evaluation, name: str) -> Path:
    """Write it, with its figures on the test part, to where the package looks for it."""
    told = evaluation.figures[CONFIDENCE]
    figures = {n: round(v[0], 4) for n, v in told.items() if np.isfinite(v[0])}
    probed = evaluation.figures[PROBED]["auroc"][0]
    figures["auroc with the probe"] = round(probed, 4)
    SHIPPED.mkdir(exist_ok=True)
    path = SHIPPED / f"{calibration.subject.model}.{FILE[name]}.json"
    text = replace(calibration, figures=figures).to_json()
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="onnx", help="of the collection in build/routing/")
    parser.add_argument("--table", type=Path, help="a table that --pack wrote, instead")
    parser.add_argument("--strong", help="another collection, of a stronger model's answers")
    parser.add_argument("--pack", type=Path, help="where to write the features and verdicts")
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--splits", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write curves.png and curves.json")
    options = parser.parse_args()
    if options.table:
        subject, table = unpack(options.table)
    else:
        subject, table = tabled(options.name)
    print(
        f"{len(table)} answers about {len(set(table.pictures))} pictures,"
        f" {table.right.mean():.1%} right"
    )
    if options.pack:
        pack(options.pack, subject, table)
    calibration, test = fitted(subject, table)
    started = time.monotonic()
    evaluation = evaluate(calibration, test)
    report(evaluation)
    print(f"({time.monotonic() - started:.0f} s)")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(evaluation, options.out / "curves.png")
        (options.out / "curves.json").write_text(json.dumps(evaluation.to_dict()))
    if options.strong:
        _, both = tabled(options.name, options.strong)
        unseen = set(test.pictures)
        rows = [i for i, picture in enumerate(both.pictures) if picture in unseen]
        print(f"\nSent to {options.strong}:")
        report(evaluate(calibration, both.part(np.array(rows))))
    if options.splits:
        for risk in RISKS:
            given, worse, coverages = broken(table, options.splits, risk)
            answered = f"; {np.mean(coverages):.1%} of it was answered" if coverages else ""
            print(
                f"At {risk:.0%} risk {given} of {options.splits} splits were certified, and the"
                f" test part of {worse} erred more often{answered}."
            )
    if options.ship:
        print(ship(calibration, evaluation, options.name))


if __name__ == "__main__":
    main()
