"""`edgevlm adapter train`: an adapter from one's own pictures and conversations."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.cli.nouns import json_option, print_json

if TYPE_CHECKING:
    from edgevlm.adapters.training.report import Report

EPILOG = """\b
Examples:
  edgevlm adapter train talks.jsonl --name mine
  edgevlm adapter train ./captioned --name garden --epochs 5 --rank 16
  edgevlm adapter train talks.jsonl --name mine --steps 400 --device cuda --json
  edgevlm adapter train --config train.toml       the same names, in a file

\b
A line of the JSONL is one of
  {"messages": [{"role": "user", "content": "What is this?"},
                {"role": "assistant", "content": "A rake."}], "images": ["rake.jpg"]}
  {"image": "rake.jpg", "question": "What is this?", "answer": "A rake."}
A folder has NAME.txt, the caption, beside each NAME.jpg.

\b
Broken off, the same command goes on where it was. Exit codes: 0 done, 2 wrong usage or data,
3 model not to be had or damaged, 4 not supported here or no room, 130 interrupted.
"""


@click.command(epilog=EPILOG, short_help="Train an adapter on pictures and conversations.")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="A train.toml.")
@click.option("--name", help="What the adapter is called.")
@click.option("-m", "--model", metavar="M", help="The base.  [default: edgevlm-tiny]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="[default: ./NAME]")
@click.option("--rank", type=int, metavar="N", help="[default: 8]")
@click.option("--alpha", type=float, metavar="X", help="[default: 16]")
@click.option("--targets", metavar="T", help="all-linear or attention.  [default: all-linear]")
@click.option("--epochs", type=int, metavar="N", help="Rounds through the data.  [default: 3]")
@click.option("--steps", type=int, metavar="N", help="The most steps.")
@click.option("--lr", type=float, metavar="X", help="Learning rate at its highest. [default: 5e-4]")
@click.option("--batch", type=int, metavar="N", help="Conversations a step.  [default: 4]")
@click.option("--eval-share", type=float, metavar="X", help="Examples kept apart.  [default: 0.1]")
@click.option(
    "--patience", type=int, metavar="N", help="Evaluations without a better one.  [default: 3]"
)
@click.option("--device", metavar="D", help="cpu, mps, cuda or auto.  [default: auto]")
@click.option("--seed", type=int, metavar="N", help="[default: 0]")
@click.option("--threads", type=int, metavar="N", help="Compute threads.")
@click.option("--title", metavar="T", help="One line on what it is.")
@click.option("--description", metavar="T", help="What it is for.")
@click.option("--version", metavar="V", help="[default: 1.0.0]")
@click.option("--license", metavar="L", help="Of the adapter.")
@click.option("-s", "--system", metavar="S", help="A system prompt that it learns, and brings.")
@click.option("--notice", metavar="T", help="A line that goes with every answer it gives.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever an earlier run came to.")
@json_option
def train(config: Path | None, restart: bool, as_json: bool, **given: Any) -> None:
    """Train an adapter on DATA, a JSONL file of conversations or a folder of pictures with
    captions, and write it as a folder that `edgevlm adapter install` takes.

    The base stays as it is deployed, at 4 bits: the adapter learns around its rounding.
    """
    from edgevlm.adapters.training.job import train as run
    from edgevlm.adapters.training.recipe import make_recipe
    from edgevlm.cli.progress import progress
    from edgevlm.settings import load_settings

    recipe = make_recipe(given, config)
    with progress() as shown:
        report = run(recipe, load_settings(), progress=shown, restart=restart)
    if as_json:
        print_json(report.to_dict())
    else:
        _describe(report, recipe.model)


def _describe(report: Report, model: str) -> None:
    click.echo(f"{report.name} is in {report.folder}: {report.steps} steps, {report.ended}")
    if report.eval_loss is not None and report.base_eval_loss is not None:
        click.echo(
            f"  evaluation {report.eval_loss:.3f} at step {report.best_step},"
            f" the base {report.base_eval_loss:.3f} (nats for each answer token)"
        )
        if report.eval_loss >= report.base_eval_loss:
            click.echo("It does no better than the base on what was kept apart.", err=True)
    folder = os.path.join(".", os.path.relpath(report.folder))  # noqa: PTH118 (Path drops the dot)
    words = [shlex.quote(word) for word in (model, folder)]
    click.echo(f"  use it:     edgevlm chat --model {words[0]} --adapter {words[1]}")
    click.echo(f"  install it: edgevlm adapter install {words[1]}")
