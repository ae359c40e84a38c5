"""Where one file comes from, written as one line.

hf://owner/repo@revision/path/in/repo      a file on the Hugging Face hub
pypi://package==version/path/in/wheel      one member of a wheel
file:///absolute/path                      a file on this machine
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from edgevlm.models.names import HubId, check_path

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]*")


@dataclass(frozen=True, slots=True)
class HubSource:
    hub: HubId
    path: str

    def __str__(self) -> str:
        return f"hf://{self.hub.repo_id}@{self.hub.revision}/{self.path}"


@dataclass(frozen=True, slots=True)
class PypiSource:
    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pypi://{self.package}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class FileSource:
    path: Path

    def __str__(self) -> str:
        return self.path.as_uri()


Source: TypeAlias = HubSource | PypiSource | FileSource


def parse_source(text: str) -> Source:
    """Read one line. Raises ValueError saying what is wrong with it."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "hf":
        return _hub(text, rest)
    if separator and scheme == "pypi":
        return _pypi(text, rest)
    if separator and scheme == "file":
        return _file(text)
    raise ValueError(f"{text!r} is not a source: use hf://, pypi:// or file://")


def _hub(text: str, rest: str) -> HubSource:
    owner, _, rest = rest.partition("/")
    repo, _, path = rest.partition("/")
    hub = HubId.parse(f"{owner}/{repo}")
    if hub is None or "@" not in repo or not path:
        raise ValueError(f"{text!r} is not hf://owner/repo@revision/path")
    return HubSource(hub, check_path(path))


def _pypi(text: str, rest: str) -> PypiSource:
    pin, _, member = rest.partition("/")
    package, pinned, version = pin.partition("==")
    # Both reach pip's command line, where a leading dash would be an option.
    if not (pinned and _PACKAGE.fullmatch(package) and _VERSION.fullmatch(version) and member):
        raise ValueError(f"{text!r} is not pypi://package==version/path/in/wheel")
    return PypiSource(package, version, check_path(member))


def _file(text: str) -> FileSource:
    from urllib.request import url2pathname

    parts = urlsplit(text)
    path = Path(url2pathname(parts.path))
    if parts.netloc or not path.is_absolute():
        raise ValueError(f"{text!r} is not file:///absolute/path")
    return FileSource(path)
