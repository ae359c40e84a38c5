"""A server of a small model, with adapters."""

from serving import adapters_home, model, server

__all__ = ["adapters_home", "model", "server"]
