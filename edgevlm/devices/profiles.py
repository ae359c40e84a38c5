"""Device profiles: what is published of a device that isn't this one.

Each is a TOML file of the `devices` folder. Every figure is a table `{ value, source }`
whose `source` names an entry of the file's `[sources]`: an address, or how it was estimated.

    title, kind, chip, runtimes
    [memory]  bytes, for_one_app, bandwidth (1e9 bytes a second)
    [cpu]     performance_cores, efficiency_cores, gflops (float32)
    [gpu]     cores, gflops (float16)
    [npu]     gflops (float16, or half of what is published for 8 bits)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.devices.costs import Processor
from edgevlm.errors import EdgeVLMError, UsageError

KINDS = ("phone", "tablet", "laptop", "desktop", "board")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SECTIONS = {
    "memory": ("bytes", "for_one_app", "bandwidth"),
    "cpu": ("performance_cores", "efficiency_cores", "gflops"),
    "gpu": ("cores", "gflops"),
    "npu": ("gflops",),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it is from."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A device. `figures` holds each number by its dotted name, "memory.bandwidth";
    `sources` says what its source's name stands for."""

    name: str
    title: str
    kind: str
    chip: str
    runtimes: tuple[str, ...]
    figures: Mapping[str, Figure]
    sources: Mapping[str, str]

    @property
    def memory(self) -> int:
        return int(self.figures["memory.bytes"].value)

    @property
    def for_one_app(self) -> int:
        """Bytes that the system lets one program have."""
        return int(self.figures["memory.for_one_app"].value)

    @property
    def bandwidth(self) -> float:
        """1e9 bytes a second."""
        return self.figures["memory.bandwidth"].value

    @property
    def gflops(self) -> dict[Processor, float]:
        """1e9 operations a second of each processor there is."""
        processors: tuple[Processor, ...] = ("cpu", "gpu", "npu")
        named = {p: self.figures.get(f"{p}.gflops") for p in processors}
        return {p: figure.value for p, figure in named.items() if figure is not None}


@cache
def load_profiles() -> Mapping[str, Profile]:
    """All profiles by name. Raises EdgeVLMError naming a file that is wrong."""
    paths = sorted(profiles_folder().glob("*.toml"))
    return {path.stem: parse_profile(path.stem, path.read_text("utf-8")) for path in paths}


def find_profile(name: str) -> Profile:
    """Raises UsageError with the names that are near."""
    import difflib

    profiles = load_profiles()
    if name in profiles:
        return profiles[name]
    near = difflib.get_close_matches(name.lower(), profiles, n=3, cutoff=0.4)
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    raise UsageError(
        f"There is no device profile {name!r}.", hint=f"{hint}`edgevlm device list` shows all."
    )


def profile_of_chip(chip: str) -> Profile | None:
    """The first profile of a chip, by its name as the system tells it; of one that has none
    that of the plain chip of its kind, which is slower: the M3's for an M3 Max."""
    name = chip.lower() + " "
    found = [p for p in load_profiles().values() if name.startswith(p.chip.lower() + " ")]
    return max(found, key=lambda profile: len(profile.chip), default=None)


def profiles_folder() -> Path:
    """In an installed package `edgevlm/data/devices`, in the repository its top folder."""
    package = Path(__file__).parent.parent
    shipped = package / "data" / "devices"
    return shipped if shipped.is_dir() else package.parent / "devices"


def parse_profile(name: str, text: str) -> Profile:
    """Read one profile. Raises EdgeVLMError that says what is wrong with it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if not _NAME.fullmatch(name):
            raise ValueError("its name has other characters than a-z, 0-9, '-' and '.'")
        return _profile(name, tomllib.loads(text))
    except (TypeError, ValueError, KeyError) as error:
        raise EdgeVLMError(f"The device profile {name!r} is wrong: {error}.") from error


def _profile(name: str, table: dict[str, Any]) -> Profile:
    sources = table.pop("sources")
    figures = {
        f"{section}.{key}": _figure(f"{section}.{key}", table[section].pop(key), sources)
        for section, keys in _SECTIONS.items()
        if section in table
        for key in keys
        if key in table[section]
    }
    left = [key for section in _SECTIONS for key in table.pop(section, {})]
    profile = Profile(
        name=name,
        title=str(table.pop("title")),
        kind=str(table.pop("kind")),
        chip=str(table.pop("chip")),
        runtimes=tuple(table.pop("runtimes")),
        figures=figures,
        sources={str(key): str(text) for key, text in sources.items()},
    )
    if left or table:
        raise ValueError(f"it has the unknown keys {[*left, *table]}")
    if profile.kind not in KINDS:
        raise ValueError(f"its kind is none of {', '.join(KINDS)}")
    for needed in ("memory.bytes", "memory.for_one_app", "memory.bandwidth", "cpu.gflops"):
        if needed not in figures:
            raise ValueError(f"it has no {needed}")
    if profile.for_one_app > profile.memory:
        raise ValueError("one app gets more memory than there is")
    unused = set(sources) - {figure.source for figure in figures.values()}
    if unused:
        raise ValueError(f"nothing comes from its sources {sorted(unused)}")
    return profile


def _figure(key: str, entry: Any, sources: Mapping[str, str]) -> Figure:
    if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
        raise ValueError(f"{key} is not a value with its source")
    value, source = entry["value"], entry["source"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        raise ValueError(f"{key} is no number: {value!r}")
    if source not in sources or not str(sources[source]).strip():
        raise ValueError(f"{key} names the source {source!r}, which is not there")
    return Figure(float(value), source)
