"""Two ways to keep a decoder's keys and values between runs, both without a copy a step.

With GroupQueryAttention the graph can write into the buffer that it reads: past and
present are one preallocated array, bound once (`SharedCache`). Plain exports
concatenate: the present of one step, handed on as it is, is the past of the next
(`ChainedCache`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from edgevlm.engine.cancel import Cancel
from edgevlm.runtimes.onnx_layout import CacheLayout
from edgevlm.runtimes.onnx_session import Array, OrtValue, Session, as_array, to_ort

_FIRST_CAPACITY = 512


class KvCache(Protocol):
    """Keys and values of one sequence."""

    def run(self, feeds: Mapping[str, Array], length: int, total: int, cancel: Cancel) -> Array:
        """Run the positions from `length` up to `total`, and keep their keys and values.

        Returns the graph's logits [1, rows, n_vocab], no buffer of a later run.
        """

    def truncate(self, length: int) -> None:
        """Keep the first `length` positions."""

    def feed(self, session: Session, tensors: Mapping[str, OrtValue]) -> None:
        """Run `session` from now on, a graph of the same layout, with these optional inputs."""


class SharedCache:
    """One buffer for past and present, doubled as the sequence grows."""

    def __init__(self, session: Session, layout: CacheLayout, limit: int) -> None:
        self._layout = layout
        self._limit = limit
        self._capacity = 0
        self.buffers = layout.empty(0)
        self._session = session
        self._tensors: Mapping[str, OrtValue] = {}
        self._binding = self._bind(session, {})

    def run(self, feeds: Mapping[str, Array], length: int, total: int, cancel: Cancel) -> Array:
        if total > self._capacity:
            self._grow(length, total)
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, array)
        # Bound anew, it gets an array of its own; a kept one would be overwritten.
        self._binding.bind_output("logits", "cpu")
        self._session.run_bound(self._binding, cancel, release=total - length > 1)
        return as_array(self._binding.get_outputs_as_ortvaluevector()[0])

    def truncate(self, length: int) -> None:
        """Nothing to do: the attention mask's length says how much of the buffer counts."""

    def _grow(self, filled: int, wanted: int) -> None:
        capacity = max(self._capacity, _FIRST_CAPACITY)
        while capacity < wanted:
            capacity *= 2
        capacity = min(capacity, self._limit)
        grown = self._layout.empty(capacity)
        for old, new in zip(self.buffers, grown, strict=True):
            new[:, :, :filled] = old[:, :, :filled]
        self.buffers, self._capacity = grown, capacity
        self._binding = self._bind(self._session, self._tensors)

    def feed(self, session: Session, tensors: Mapping[str, OrtValue]) -> None:
        if session is not self._session or tensors is not self._tensors:
            # Bound first: what is bound now reads the memory of its tensors.
            self._binding = self._bind(session, tensors)
            self._session, self._tensors = session, tensors

    def _bind(self, session: Session, tensors: Mapping[str, OrtValue]) -> Any:
        binding = session.new_binding()
        # The order of binding is the order of outputs, and the logits come first.
        binding.bind_output("logits", "cpu")
        for past, present, buffer in zip(
            self._layout.past, self._layout.present, self.buffers, strict=True
        ):
            value = to_ort(buffer)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        for name, value in tensors.items():
            binding.bind_ortvalue_input(name, value)
        return binding


class ChainedCache:
    """The outputs of the last run, which are the inputs of the next."""

    def __init__(self, session: Session, layout: CacheLayout) -> None:
        self._layout = layout
        self._past: list[OrtValue] = [to_ort(array) for array in layout.empty(0)]
        self.feed(session, {})

    def run(self, feeds: Mapping[str, Array], length: int, total: int, cancel: Cancel) -> Array:
        values = {name: to_ort(array) for name, array in feeds.items()}
        values.update(self._tensors)
        values.update(zip(self._layout.past, self._past, strict=True))
        logits, *self._past = self._session.run(
            ["logits", *self._layout.present], values, cancel, release=total - length > 1
        )
        return as_array(logits)

    def truncate(self, length: int) -> None:
        if not self._past or self._past[0].shape()[2] <= length:
            return
        self._past = [to_ort(as_array(value)[:, :, :length].copy()) for value in self._past]

    def feed(self, session: Session, tensors: Mapping[str, OrtValue]) -> None:
        self._session, self._tensors = session, tensors
