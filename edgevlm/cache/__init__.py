"""Answers to questions asked before, on this device's disk.

`Asked` says what an answer depends on, `AnswerCache` keeps answers by it.
"""

from edgevlm.cache.answers import AnswerCache
from edgevlm.cache.asked import Asked, Picture, Said
from edgevlm.cache.database import CacheStats
from edgevlm.cache.weights import weights_key

__all__ = ["AnswerCache", "Asked", "CacheStats", "Picture", "Said", "weights_key"]
