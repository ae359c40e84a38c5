"""Where calibrations are kept: those that ship beside this file, and those made on this device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgevlm.errors import ModelCorrupt
from edgevlm.models.disk import disk_errors, write_atomically
from edgevlm.routing.calibration import Calibration, Subject
from edgevlm.settings import Settings

SHIPPED = Path(__file__).with_name("calibrations")
_MOST_BYTES = 4 * 2**20


class Shelf:
    """Calibrations by what they are of; this device's own come before those that ship."""

    def __init__(self, settings: Settings) -> None:
        self._own = settings.home / "routing" / "calibrations"

    def find(self, subject: Subject) -> Calibration | None:
        """Raises ModelCorrupt for a file that is none."""
        own = self._place(subject)
        if own.is_file():
            return read_calibration(own)
        return next((c for c in self.shipped() if c.subject == subject), None)

    def own(self) -> Iterator[Calibration]:
        """Raises ModelCorrupt, as `shipped` does."""
        return map(read_calibration, sorted(self._own.glob("*.json")))

    def shipped(self) -> Iterator[Calibration]:
        return map(read_calibration, sorted(SHIPPED.glob("*.json")))

    def put(self, calibration: Calibration) -> Path:
        """Keep it for this device, in place of an earlier one. Raises NoSpace, ModelUnavailable."""
        place = self._place(calibration.subject)
        with disk_errors(self._own):
            self._own.mkdir(parents=True, exist_ok=True)
            write_atomically(place, calibration.to_json())
        return place

    def remove(self, subject: Subject) -> bool:
        """Forget this device's own; whether there was one."""
        place = self._place(subject)
        found = place.is_file()
        with disk_errors(self._own):
            place.unlink(missing_ok=True)
        return found

    def _place(self, subject: Subject) -> Path:
        return self._own / f"{subject.key}.json"


def read_calibration(path: Path) -> Calibration:
    """Raises ModelCorrupt."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        return Calibration.of_json(content.decode("utf-8"))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelCorrupt(
            f"The calibration {path} can't be read: {type(error).__name__}: {error}.",
            hint="Remove it, or make it anew with `edgevlm route calibrate`.",
        ) from error
