"""The one renderer of chat templates."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm.errors import TemplateError
from edgevlm.families.template_sandbox import MAX_VALUE, MeteredEnvironment

_MAX_SOURCE = 64 * 1024
_MAX_OUTPUT = MAX_VALUE
_HINT = "Use another model, or mend the chat template in its folder."


class ChatTemplate:
    """A model's own Jinja template, compiled once; safe to render from any thread.

    Rendering follows transformers (block lines trimmed, `raise_exception`, `tojson`,
    `namespace`, `break` and `continue`), within limits of work, time and output.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        """Compile `source`; `variables` are what it may name besides the messages, such as
        `bos_token`. Raises TemplateError."""
        if len(source) > _MAX_SOURCE:
            raise TemplateError(
                f"The chat template has {len(source)} characters, more than {_MAX_SOURCE}.",
                hint=_HINT,
            )
        self._variables = dict(variables or {})
        self._lock = threading.Lock()
        self._environment = MeteredEnvironment()
        try:
            self._template = self._environment.compile_template(source)
        except Exception as error:  # a template can fail in any way, MemoryError included
            raise _failure("can't be compiled", error) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the conversation as text. `messages` hold plain str, list and dict only.

        Raises TemplateError.
        """
        given = {
            **self._variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        with self._lock:
            self._environment.meter.start()
            pieces: list[str] = []
            room = _MAX_OUTPUT
            try:
                for piece in self._template.generate(given):
                    room -= len(piece)
                    if room < 0:
                        raise TemplateError(
                            f"The chat template wrote more than {_MAX_OUTPUT} characters.",
                            hint=_HINT,
                        )
                    pieces.append(piece)
            except TemplateError:
                raise
            except Exception as error:
                raise _failure("failed", error) from error
        return "".join(pieces)


def _failure(what: str, error: Exception) -> TemplateError:
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return TemplateError(f"The chat template {what}: {reason}.", hint=_HINT)
