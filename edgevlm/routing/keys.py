"""The key of a provider: from the environment or the system's keyring, and in no other place.

A key is shown by nothing here: not by `repr`, `str` or pickling, and no exception holds one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from edgevlm.errors import CloudNotAllowed
from edgevlm.routing.provider import Provider

# What the keyring files it under; the user name there is the provider's base URL.
SERVICE = "edgevlm"
_HIDDEN = "[key]"
_SHORTEST = 8  # characters; a shorter one is part of ordinary words, and hides nothing


class Key:
    """A secret. `reveal` is called where its bytes go on the wire, and nowhere else."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Key(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not written down")

    def hide(self, text: str) -> str:
        """`text` without the key, should somebody have sent it back to us."""
        return text.replace(self._value, _HIDDEN) if len(self._value) >= _SHORTEST else text


class Veil:
    """Hides a key in a text that comes in pieces."""

    def __init__(self, key: Key | None) -> None:
        self._key = key
        self._held = ""

    def push(self, text: str) -> str:
        """What can be shown so far: an end that may begin the key is held back."""
        if self._key is None:
            return text
        self._held = self._key.hide(self._held + text)
        secret = self._key.reveal()
        keep = next(
            (n for n in range(len(secret) - 1, 0, -1) if self._held.endswith(secret[:n])), 0
        )
        cut = len(self._held) - keep if len(secret) >= _SHORTEST else len(self._held)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        shown, self._held = self._held, ""
        return shown


def find_key(provider: Provider, environ: Mapping[str, str] | None = None) -> Key | None:
    """The provider's key; None where it needs none, being a server on this device.

    Raises CloudNotAllowed where there is no key, or one that can't be sent.
    """
    value, source = _look_up(provider, environ)
    if source is None:
        if provider.on_this_device:
            return None
        raise CloudNotAllowed(
            f"There is no key for {provider.called}.",
            hint=f"Set the variable {provider.api_key_env}, or put the key into the system's"
            f" keyring: `keyring set {SERVICE} {provider.base_url}`.",
        )
    if not re.fullmatch(r"[\x21-\x7e]{1,4096}", value):
        raise CloudNotAllowed(
            f"The key for {provider.called} has characters that no key has.",
            hint=f"Set it again, to the key alone: in the {source}.",
        )
    return Key(value)


def key_source(provider: Provider, environ: Mapping[str, str] | None = None) -> str | None:
    """Where the provider's key is, None where there is none."""
    return _look_up(provider, environ)[1]


def _look_up(provider: Provider, environ: Mapping[str, str] | None) -> tuple[str, str | None]:
    environ = os.environ if environ is None else environ
    if value := environ.get(provider.api_key_env, "").strip():
        return value, f"variable {provider.api_key_env}"
    if value := _from_keyring(provider):
        return value, "system's keyring"
    return "", None


def _from_keyring(provider: Provider) -> str:
    """Empty where the system has no keyring, or none that keeps secrets."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return ""
    backend: Any = keyring.get_keyring()
    if type(backend).__module__.startswith("keyrings.alt.file"):
        return ""  # a plain file, which is no place for a key
    try:
        return (backend.get_password(SERVICE, provider.base_url) or "").strip()
    except (KeyringError, RuntimeError, OSError):
        return ""
