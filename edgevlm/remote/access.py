"""The token between this device's server and its clients: made at first start, readable by its
owner alone, compared in constant time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from edgevlm.errors import SettingsError
from edgevlm.models.disk import disk_errors

ENVIRONMENT = "EDGEVLM_SERVE_TOKEN"
_LEAST = 16
_BYTES = 32


@dataclass(frozen=True, slots=True)
class AccessToken:
    """`file` is where it is kept, None where the environment gave it; `new` where it was made
    just now."""

    value: str
    file: Path | None
    new: bool = False

    def __repr__(self) -> str:
        return f"AccessToken(file={self.file!r}, new={self.new})"

    def matches(self, given: str) -> bool:
        """Compare in a time that does not depend on how much of it is right."""
        return compare_digest(given.encode("utf-8", "replace"), self.value.encode())


def access_token(home: Path, environ: Mapping[str, str] | None = None) -> AccessToken:
    """The token of this device's server. Raises SettingsError for one that can't be, or that
    others may read; NoSpace and ModelUnavailable where it can't be kept."""
    given = (os.environ if environ is None else environ).get(ENVIRONMENT, "")
    if given:
        return AccessToken(_checked(given, ENVIRONMENT), None)
    file = _file(home)
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept(file)
        if kept is not None:
            return AccessToken(kept, file)
        made = secrets.token_urlsafe(_BYTES)
        # Written aside and linked, so that of two first starts one wins and none is half there.
        draft = file.with_name(f".token-{secrets.token_hex(8)}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:  # noqa: PTH123
                out.write(made)
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(draft, file)
            except FileExistsError:
                return access_token(home, environ)
        finally:
            draft.unlink(missing_ok=True)
    return AccessToken(made, file, new=True)


def known_token(home: Path, environ: Mapping[str, str] | None = None) -> str | None:
    """What a client on this device sends its server: the environment's token, or the file's.
    None where there is neither. Raises SettingsError."""
    given = (os.environ if environ is None else environ).get(ENVIRONMENT, "")
    return _checked(given, ENVIRONMENT) if given else _kept(_file(home))


def _file(home: Path) -> Path:
    return home / "serve" / "token"


def _kept(file: Path) -> str | None:
    try:
        status = file.stat()
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(
            f"Can't read the token in {file}: {error.strerror}.",
            hint="Remove it: a new one is made.",
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not text.", hint="Remove it: a new one is made.") from error
    if os.name == "posix" and status.st_mode & 0o077:
        raise SettingsError(
            f"Others may read the token in {file}.",
            hint=f"Run: chmod 600 {file}, or remove it: a new one is made.",
        )
    return _checked(text, str(file))


def _checked(token: str, source: str) -> str:
    if len(token) < _LEAST or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(
            f"The token from {source} can't be one.",
            hint=f"Use {_LEAST} or more printable ASCII characters without spaces.",
        )
    return token
