"""A Hugging Face folder to one that MLX runs: ours and mlx-vlm's own loader take it."""

from edgevlm.models.mlx_export.export import export_mlx

__all__ = ["export_mlx"]
