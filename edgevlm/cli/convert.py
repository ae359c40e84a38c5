"""`edgevlm model convert`: weights of the hub or a folder into a runtime's own files."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgevlm.cli.nouns import json_option, print_json

if TYPE_CHECKING:
    from edgevlm.models.convert import Report

EPILOG = """\b
Examples:
  edgevlm model convert ./SmolVLM-256M-Instruct --runtime onnx
  edgevlm model convert HuggingFaceTB/SmolVLM-256M-Instruct --runtime llamacpp
  edgevlm model convert smolvlm2-500m --runtime mlx --bits 8 --output ./smolvlm2-mlx-8bit
  edgevlm model convert ./my-model --runtime llamacpp --quantize q4_0 --json

\b
Broken off, the same command goes on where it was. Exit codes: 0 done, 2 wrong usage,
3 weights not to be had or damaged, 4 not supported here or no room, 130 interrupted.
"""
_LOW_AGREEMENT = 0.9


@click.command(epilog=EPILOG, short_help="Convert a model to a runtime's own files.")
@click.argument("model")
@click.option("--runtime", required=True, metavar="R", help="onnx, llamacpp, mlx or coreml.")
@click.option("--bits", type=int, help="Of the decoder: 4 (the default), 8 or 16.")
@click.option(
    "--vision-bits", type=int, default=16, show_default=True, help="Of the vision encoder."
)
@click.option("--quantize", metavar="NAME", help="llama.cpp's name of the decoder's types.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="By default NAME-RUNTIME in this folder.",
)
@click.option("--force", is_flag=True, help="Replace an earlier conversion.")
@json_option
def convert(
    model: str,
    runtime: str,
    bits: int | None,
    vision_bits: int,
    quantize: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert MODEL, a folder or a hub id with safetensors, to the files of a runtime.

    The result is loaded and asked, and what the fewer bits cost is told: how far its
    distributions are from the source's, and how often its first choice is the same.
    """
    from edgevlm.cli.progress import progress
    from edgevlm.models.convert import Recipe
    from edgevlm.models.convert import convert as run

    recipe = Recipe.make(runtime, bits, vision_bits, quantize)
    with progress() as shown:
        report = run(model, recipe, output=output, force=force, progress=shown)
    agreement = report.check.top1_agreement
    if agreement is not None and agreement < _LOW_AGREEMENT and recipe.bits < 16:
        wider = "--bits 8" if recipe.bits < 8 else "--bits 16"
        click.echo(
            f"Only {agreement:.0%} of the first choices are the source's: try {wider}.", err=True
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _describe(report)


def _describe(report: Report) -> None:
    from edgevlm.models.disk import size_text

    folder = os.path.relpath(report.folder)
    if folder.startswith(".."):
        folder = report.folder
    elif not folder.startswith("."):
        folder = os.path.join(".", folder)  # noqa: PTH118 (a Path would drop the dot)
    click.echo(f"{report.name} is here for {report.runtime}: {size_text(report.size)} in {folder}")
    click.echo(f"  decoder {report.decoder}, vision encoder {report.vision_bits} bits")
    found = report.check
    if found.reason is not None:
        click.echo(f"  its files are complete; it was not run: {found.reason}")
    else:
        click.echo(
            f"  against the source, over {found.n_tokens} tokens: KL divergence"
            f" {found.kl_divergence:.2g} nats, same first choice {found.top1_agreement:.1%}"
        )
    click.echo(f"  try it: edgevlm chat --model {shlex.quote(folder)}")
