"""Writing GGUF files for llama.cpp: needs the `gguf` package of the `convert` extra."""

from edgevlm.models.gguf_export.export import GgufExport, export_gguf

__all__ = ["GgufExport", "export_gguf"]
