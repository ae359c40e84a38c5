"""Writing ONNX models: needs the `onnx` package, which no user's installation does."""

from edgevlm.models.onnx_export.export import export_onnx

__all__ = ["export_onnx"]
