"""EdgeVLM: vision-language models on your own device.

    from edgevlm import Session

    with Session() as session:
        reply = session.ask("What is in this picture?", images=["photo.jpg"])
        print(reply.text)

Names load on first use: importing this package loads no runtime, and no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgevlm.aio import AsyncSession as AsyncSession
    from edgevlm.engine.sampling import Sampling as Sampling
    from edgevlm.errors import EdgeVLMError as EdgeVLMError
    from edgevlm.messages import Message as Message
    from edgevlm.messages import Reply as Reply
    from edgevlm.messages import Route as Route
    from edgevlm.messages import Timings as Timings
    from edgevlm.messages import Token as Token
    from edgevlm.messages import Usage as Usage
    from edgevlm.model import Model as Model
    from edgevlm.model import load_model as load_model
    from edgevlm.session import Session as Session
    from edgevlm.settings import Settings as Settings
    from edgevlm.settings import load_settings as load_settings

_HOMES = {
    "AsyncSession": "edgevlm.aio",
    "EdgeVLMError": "edgevlm.errors",
    "Message": "edgevlm.messages",
    "Model": "edgevlm.model",
    "Reply": "edgevlm.messages",
    "Route": "edgevlm.messages",
    "Sampling": "edgevlm.engine.sampling",
    "Session": "edgevlm.session",
    "Settings": "edgevlm.settings",
    "Timings": "edgevlm.messages",
    "Token": "edgevlm.messages",
    "Usage": "edgevlm.messages",
    "load_model": "edgevlm.model",
    "load_settings": "edgevlm.settings",
}

__all__ = sorted(["__version__", *_HOMES])


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'edgevlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
