"""Which file of a folder or a repository plays which part, one file a runtime."""

from edgevlm.models.layouts.base import Layout
from edgevlm.models.layouts.discover import discover, nearest, offered

__all__ = ["Layout", "discover", "nearest", "offered"]
