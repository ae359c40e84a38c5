"""What a conversion made and what it cost; kept beside the files as conversion.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevlm.models.disk import write_atomically

REPORT = "conversion.json"


@dataclass(frozen=True, slots=True)
class Check:
    """The result against its source, on the fixed prompt set.

    `n_tokens` of answers were read by both. `kl_divergence` is the mean over them in nats,
    of the source's distribution from the result's; `top1_agreement` the share with the same
    first choice. Without figures `reason` says why only the files could be looked at.
    """

    n_tokens: int = 0
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """`folder` is where the result lies; `key` tells source and recipe apart from others."""

    name: str
    runtime: str
    folder: str
    source: str
    source_fingerprint: str
    key: str
    decoder: str
    decoder_bits: int
    vision_bits: int
    size: int
    versions: dict[str, str]
    check: Check
    created: str

    def save(self, folder: Path) -> None:
        write_atomically(folder / REPORT, json.dumps(self.to_dict(), indent=1))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_report(folder: Path) -> Report | None:
    """The report of a folder that a conversion has made, else None."""
    try:
        fields = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        fields["folder"] = str(folder)
        return Report(**{**fields, "check": Check(**fields["check"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
