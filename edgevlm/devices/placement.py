"""Which runtime runs a model on this machine."""

from __future__ import annotations

from edgevlm.engine.contract import Runtime
from edgevlm.errors import EdgeVLMError, NotSupported
from edgevlm.runtimes import get_runtime, installed_runtimes

# First choice first, of those that can run here.
PREFERENCE = ("onnx",)


def choose_runtime(name: str = "auto") -> Runtime:
    """Return the runtime of that name, or for `auto` the first preferred one that can run.

    Raises UnknownRuntime, and NotSupported with the reason where it can't run here.
    """
    if name != "auto":
        runtime = get_runtime(name)
        reason = runtime.unavailable()
        if reason:
            raise NotSupported(f"Runtime {name} can't run here: {reason}.", hint="Try `auto`.")
        return runtime
    reasons = []
    installed = installed_runtimes()
    for candidate in sorted(installed, key=_rank):
        try:
            runtime = get_runtime(candidate)
            reason = runtime.unavailable()
        except EdgeVLMError as error:
            reason = error.message
        if not reason:
            return runtime
        reasons.append(f"{candidate}: {reason}")
    raise NotSupported(
        f"No runtime can run here ({'; '.join(reasons) or 'none is installed'}).",
        hint="`edgevlm doctor` says what each one wants.",
    )


def _rank(name: str) -> tuple[int, str]:
    return (PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE), name)
