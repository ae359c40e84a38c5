"""Runtimes by name, found through the entry points `edgevlm.runtimes`.

Ours are registered like anyone's: a package that declares

    [project.entry-points."edgevlm.runtimes"]
    fast = "fast_runtime:FastRuntime"

offers a class whose objects keep `edgevlm.engine.contract.Runtime`. Nothing is
imported before its runtime is asked for, so one that is broken harms only itself.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from edgevlm.errors import NotSupported, UnknownRuntime

if TYPE_CHECKING:
    from edgevlm.engine.contract import Runtime

GROUP = "edgevlm.runtimes"
_OWN_PACKAGE = "edgevlm"

__all__ = ["GROUP", "get_runtime", "installed_runtimes"]


def installed_runtimes() -> list[str]:
    """Names of all registered runtimes, sorted, whether or not they can run here."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def get_runtime(name: str) -> Runtime:
    """Load the runtime `name`.

    Whether it can run on this machine, the runtime itself says (`unavailable`). Raises
    UnknownRuntime if nothing is registered under the name, NotSupported if what is
    there can't be imported, with the command that would mend it.
    """
    entry = _find(name)
    try:
        runtime: Runtime = entry.load()()
    # Foreign code: whatever it raises, the other runtimes go on working.
    except Exception as error:
        raise NotSupported(
            f"Runtime {name!r} can't be loaded: {_reason(error)}.", hint=_install_hint(entry)
        ) from error
    return runtime


def _find(name: str) -> EntryPoint:
    candidates = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not candidates:
        known = ", ".join(installed_runtimes()) or "none"
        raise UnknownRuntime(
            f"No runtime is called {name!r}.", hint=f"Installed runtimes: {known}."
        )
    # Another package may not take over the name of one of ours.
    return min(candidates, key=lambda entry: _package(entry) != _OWN_PACKAGE)


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "its package"


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the module {error.name!r} is not installed"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _install_hint(entry: EntryPoint) -> str:
    """An extra with the runtime's own name, where its package has one, brings what it needs."""
    package = _package(entry)
    extras = entry.dist.metadata.get_all("Provides-Extra") if entry.dist else None
    wanted = f"'{package}[{entry.name}]'" if entry.name in (extras or ()) else package
    return f"Install what it needs: pip install --upgrade {wanted}"
