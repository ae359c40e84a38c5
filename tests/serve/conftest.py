"""A server of a small model, with adapters, and one of the built-in model, for the page."""

from serving import adapters_home, model, server
from visits import browser, packs_home, page_server, tiny, visit

__all__ = [
    "adapters_home",
    "browser",
    "model",
    "packs_home",
    "page_server",
    "server",
    "tiny",
    "visit",
]
