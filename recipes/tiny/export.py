"""Write everything of the built-in model that ships, and try it on all runtimes.

    python recipes/tiny/export.py

Vision encoder, adapter and text graphs go to edgevlm/models/tiny_files. Then the decoder is
compared with torch (check_graphs.py), and the answers of ONNX Runtime, llama.cpp and MLX with
each other (check_runtimes.py): half an hour, of which all but a minute is MLX on a processor.
"""

from __future__ import annotations

import shutil

import check_graphs
import check_runtimes
import export_graphs
import export_vision
from weights import CACHE, TINY_FILES

# Of all parts trained here that the repository carries.
MOST_BYTES = 40_000_000


def main() -> None:
    export_vision.main()
    shutil.copyfile(CACHE / "lora.npz", TINY_FILES / "lora.npz")
    export_graphs.main()
    sizes = {path.name: path.stat().st_size for path in sorted(TINY_FILES.iterdir())}
    for name, size in sizes.items():
        print(f"{size / 1e6:7.2f} MB  {name}")
    if sum(sizes.values()) > MOST_BYTES:
        raise SystemExit(f"these are more than {MOST_BYTES / 1e6:.0f} MB in all")
    check_graphs.main()
    check_runtimes.main()


if __name__ == "__main__":
    main()
