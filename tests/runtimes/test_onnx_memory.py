"""What ONNX Runtime's activations took is the system's again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from edgevlm.models.onnx_export.graph import Graph

# Frees 24 MiB and asks for 2: left alone, glibc takes the 2 from its heap from then on.
CODE = """
import ctypes, sys
from pathlib import Path
from edgevlm.runtimes.onnx_session import Session

session = Session(Path(sys.argv[1]), threads=1)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(24 << 20))
block = libc.malloc(2 << 20)
maps = Path("/proc/self/maps")
lines = maps.read_text().splitlines() if maps.exists() else []
heaps = [line.split()[0].split("-") for line in lines if line.endswith("[heap]")]
print(any(int(low, 16) <= block < int(high, 16) for low, high in heaps))
"""


def test_large_blocks_stay_out_of_the_heap(tmp_path: Path) -> None:
    graph = Graph("nothing")
    value = graph.input("x", np.float32, [1])
    graph.output(value, "y", np.float32, [1])
    graph.save(tmp_path / "nothing.onnx", {})
    command = [sys.executable, "-c", CODE, str(tmp_path / "nothing.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
