"""Write the built-in model's text graphs to edgevlm/models/tiny_files.

    python recipes/tiny/export_graphs.py

They hold no weights, have empty inputs for adapters, and follow the targets and ranks of lora.npz:
run this again whenever those change.
"""

from __future__ import annotations

from edgevlm.models.onnx_export.skeleton import write_skeletons
from edgevlm.models.tiny import SHIPPED, load_lora, lora_ranks
from edgevlm.models.tiny_layout import SMOLLM2_135M


def main() -> None:
    write_skeletons(SMOLLM2_135M, lora_ranks(load_lora()), SHIPPED)


if __name__ == "__main__":
    main()
