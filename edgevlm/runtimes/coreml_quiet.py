"""The coremltools module, imported without its remarks that mean nothing to our users.

At import it says through its logger which versions of other packages it was not tried with,
and off macOS that each of its bridges to Core ML is missing, which the runtime says once.
"""

from __future__ import annotations

import logging
from typing import Any

_MEANINGLESS = (
    "scikit-learn version",
    "Torch version",
    "TensorFlow version",
    "XGBoost version",
    "Failed to load _ML",
    "Torch var",
)


def _means_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MEANINGLESS)


def _import() -> Any:
    import coremltools

    return coremltools


logging.getLogger("coremltools").addFilter(_means_something)
coremltools = _import()
