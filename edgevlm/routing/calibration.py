"""A calibration: what turns the features of one model's answers into a probability, as JSON.

It belongs to one (model, edition, quantisation, adapters): the same logprobs of another model, or
of the same at other bits, mean something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgevlm.messages import ActiveAdapter
from edgevlm.routing.arrays import Floats
from edgevlm.routing.certificate import Certificate
from edgevlm.routing.features import NAMES
from edgevlm.routing.probe import PROBED
from edgevlm.routing.regression import Isotonic, Logistic

FORMAT = 1
# An answer that is still coming is judged by its first so many tokens.
PREFIXES = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose answers a calibration is of. `quantization` is `Reply.quantization`."""

    model: str
    edition: int | None
    quantization: str
    adapters: tuple[ActiveAdapter, ...] = ()

    @classmethod
    def of(
        cls,
        model: str,
        edition: int | None,
        quantization: str,
        adapters: Sequence[ActiveAdapter] = (),
    ) -> Subject:
        """Adapters in any order; one at scale 0 changes nothing."""
        active = sorted((a for a in adapters if a.scale), key=lambda a: a.name)
        return cls(model, edition, quantization, tuple(active))

    @property
    def key(self) -> str:
        """16 hex digits: a file name."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def described(self) -> str:
        adapters = "".join(
            f" + {a.name}" + (f":{a.scale:g}" if a.scale != 1 else "") for a in self.adapters
        )
        edition = "" if self.edition is None else f" edition {self.edition}"
        return f"{self.model}{edition}{adapters} ({self.quantization})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "edition": self.edition,
            "quantization": self.quantization,
            "adapters": [{"name": a.name, "scale": a.scale} for a in self.adapters],
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Subject:
        edition = values["edition"]
        return cls.of(
            str(values["model"]),
            None if edition is None else int(edition),
            str(values["quantization"]),
            [ActiveAdapter(str(a["name"]), float(a["scale"])) for a in values["adapters"]],
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """A score of numbers about an answer, and what it means. `certificates` are for the score;
    the first is the one in force."""

    score: Logistic
    probability: Isotonic
    certificates: tuple[Certificate, ...] = ()

    @property
    def certificate(self) -> Certificate | None:
        return self.certificates[0] if self.certificates else None

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.score.to_dict(),
            **self.probability.to_dict(),
            "certificates": [c.to_dict() for c in self.certificates],
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any], numbers: int = len(NAMES)) -> Scale:
        """Raises ValueError also where it is not of so many numbers."""
        certificates = tuple(Certificate.of_dict(c) for c in values["certificates"])
        scale = cls(Logistic.of_dict(values), Isotonic.of_dict(values), certificates)
        if len(scale.score.weights) != numbers:
            raise ValueError(f"{len(scale.score.weights)} weights for {numbers} numbers")
        return scale


@dataclass(frozen=True, slots=True)
class Data:
    """What a calibration was made from. `digest` is a SHA-256 over features and verdicts."""

    digest: str
    answers: int
    pictures: int
    fitted: int
    calibrated: int

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Data:
        counts = {name: int(values[name]) for name in cls.__slots__ if name != "digest"}
        return cls(digest=str(values["digest"]), **counts)


@dataclass(frozen=True, slots=True)
class Calibration:
    """`whole` judges by the features, `probed` by these and an answer's pooled logits (`probe`),
    where that was calibrated. `prefixes` judge an answer by its first tokens, `baselines` are the
    maps of single figures (`features.BASELINES`). `stops` are mean logprobs of the first tokens,
    by their number, below which an answer is hopeless. `figures` tell how good it is, on answers
    that it was not made from.
    """

    subject: Subject
    version: str
    whole: Scale
    data: Data
    probed: Scale | None = None
    prefixes: Mapping[int, Scale] = field(default_factory=dict)
    baselines: Mapping[str, Isotonic] = field(default_factory=dict)
    stops: Mapping[int, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One object, a line for each part of it."""
        parts = {
            "format": FORMAT,
            "version": self.version,
            **self.subject.to_dict(),
            "data": self.data.to_dict(),
            "features": list(NAMES),
            "whole": self.whole.to_dict(),
            "probed": None if self.probed is None else self.probed.to_dict(),
            "figures": dict(self.figures),
            "baselines": {name: m.to_dict() for name, m in self.baselines.items()},
            "stops": {str(n): round(limit, 5) for n, limit in self.stops.items()},
            "prefixes": {str(n): scale.to_dict() for n, scale in self.prefixes.items()},
        }
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in parts.items())
        return f"{{\n{lines}\n}}\n"

    @classmethod
    def of_json(cls, text: str) -> Calibration:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r} is not {FORMAT}")
        if tuple(values["features"]) != NAMES:
            raise ValueError("it is of other features than this version computes")
        return cls(
            subject=Subject.of_dict(values),
            version=str(values["version"]),
            whole=Scale.of_dict(values["whole"]),
            data=Data.of_dict(values["data"]),
            probed=_probed_of(values["probed"]),
            prefixes={int(n): Scale.of_dict(scale) for n, scale in values["prefixes"].items()},
            baselines={str(n): Isotonic.of_dict(m) for n, m in values["baselines"].items()},
            stops={int(n): float(limit) for n, limit in values["stops"].items()},
            figures={str(n): float(figure) for n, figure in values["figures"].items()},
        )


def _probed_of(values: Mapping[str, Any] | None) -> Scale | None:
    return None if values is None else Scale.of_dict(values, len(NAMES) + PROBED)


def digest_of(features: Floats, right: Floats) -> str:
    """SHA-256 over features [n, d], rounded to six digits, and verdicts [n]."""
    table = np.column_stack([features, right]).round(6).astype("<f8") + 0.0
    return hashlib.sha256(table.tobytes()).hexdigest()
