"""The one validator of names and the one validator of paths that come from outside; what a name
may stand for beside a name: a folder, a repository of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from edgevlm.errors import EdgeVLMError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,199}")
_HUB_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"(?P<owner>{_HUB_WORD})/(?P<repo>{_HUB_WORD})(?:@(?P<revision>[^@]+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
# File systems take 255 bytes; locks and staging folders append to a key.
_LONGEST_KEY = 200
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_name(name: str) -> str:
    """Return `name` if it can be a model's or an adapter's. Raises ValueError saying why not."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise ValueError(f"{name!r} is not a name: use lowercase letters, digits, '.', '_' and '-'")
    if _WINDOWS_DEVICE.fullmatch(name):
        raise ValueError(f"{name!r} is a device on Windows")
    return name


def check_path(path: str) -> str:
    """Return `path` if it stays inside the folder it is put in, on every system.

    Relative, with `/` between its parts. Raises ValueError saying why not.
    """
    parts = path.split("/")
    if not all(_PART.fullmatch(part) and not part.endswith(".") for part in parts):
        raise ValueError(f"{path!r} is not a plain relative path")
    if any(_WINDOWS_DEVICE.fullmatch(part) for part in parts):
        raise ValueError(f"{path!r} names a device on Windows")
    return str(PurePosixPath(path))


def local_folder(name: str, what: str, unknown: type[EdgeVLMError]) -> Path | None:
    """The folder that `name` is the path of, or None for what may be another kind of name.

    Raises `unknown` for a path where no folder is; `what` is there "a model" or "an adapter".
    """
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path.absolute()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, not a path at all
        path, is_file = Path(name), False
    if is_file:
        raise unknown(
            f"{name} is a file, and {what} is a folder.",
            hint="Give the folder that it is in, with the other files.",
        )
    if path.is_absolute() or name.startswith((".", "~")):
        raise unknown(
            f"There is no folder {name}.", hint=f"Give {what}'s name, its hub id, or its folder."
        )
    return None


@dataclass(frozen=True, slots=True)
class HubId:
    """`owner/repo[@revision]` on the Hugging Face hub."""

    owner: str
    repo: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """Return None for a text that is not a hub id."""
        match = _HUB_ID.fullmatch(text)
        if match is None or any("--" in match[k] or ".." in match[k] for k in ("owner", "repo")):
            return None
        revision = match["revision"] or "main"
        if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
            return None
        hub = cls(match["owner"], match["repo"], revision)
        return hub if len(hub.key) <= _LONGEST_KEY else None

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"

    @property
    def key(self) -> str:
        """A folder name of its own: no catalog name holds an `@`."""
        return f"{self.owner}--{self.repo}@{quote(self.revision, safe='')}"

    def __str__(self) -> str:
        return self.repo_id if self.revision == "main" else f"{self.repo_id}@{self.revision}"
