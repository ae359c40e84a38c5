"""From a Hugging Face folder to the files of one runtime, and what that cost."""

from edgevlm.models.convert.job import convert
from edgevlm.models.convert.recipe import RUNTIMES, Recipe
from edgevlm.models.convert.report import Check, Report

__all__ = ["RUNTIMES", "Check", "Recipe", "Report", "convert"]
