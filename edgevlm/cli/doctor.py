"""`edgevlm doctor`: what works on this machine, and what doesn't."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

EPILOG = """\b
Examples:
  edgevlm doctor            look at everything; installed models are loaded and tried
  edgevlm doctor --json     the same for a bug report

\b
Exit codes: 0 nothing to mend, 1 something is (the lines marked ✗ say what).
"""
_MARKS = {"ok": "✓", "note": "·", "fail": "✗"}


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what is installed, which runtimes can run, and whether the models are whole."""
    from edgevlm.doctor import Finding, examine
    from edgevlm.settings import load_settings

    findings: list[Finding] = []
    for finding in examine(load_settings()):
        findings.append(finding)
        if not as_json:
            click.echo(f"{_MARKS[finding.status]} {finding.area}: {finding.name}: {finding.detail}")
            if finding.hint and finding.status != "ok":
                click.echo(f"    {finding.hint}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    ctx.exit(1 if any(finding.status == "fail" for finding in findings) else 0)
