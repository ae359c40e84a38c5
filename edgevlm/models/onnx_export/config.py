"""Where `vlm_config` was: for modules that still look for it here."""

from edgevlm.models.vlm_config import ModelConfig, VisionConfig, read_config

__all__ = ["ModelConfig", "VisionConfig", "read_config"]
