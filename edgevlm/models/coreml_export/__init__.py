"""Writing Core ML packages, on Linux and macOS: needs torch and coremltools."""

from edgevlm.models.coreml_export.export import export_coreml

__all__ = ["export_coreml"]
