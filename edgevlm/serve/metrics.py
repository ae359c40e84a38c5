"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgevlm.messages import Reply
from edgevlm.serve.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts of requests, seconds of answers, tokens; no text and no names of clients."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "edgevlm_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=registry,
        )
        self._first_token = self._seconds("first_token", "From the request to its first token.")
        self._answer = self._seconds("answer", "From the request to the end of its answer.")
        self._queue = self._seconds("queue", "A request waited for its turn.")
        self._tokens = Counter(
            "edgevlm_tokens",
            "Tokens: prompt, of which cached and image, and completion.",
            ("kind",),
            registry=registry,
        )
        for name, help_text, read in (
            ("edgevlm_active", "Answers being computed.", lambda: engine.active),
            ("edgevlm_queued", "Requests that wait for their turn.", lambda: engine.queued),
            ("edgevlm_contexts", "Contexts in memory.", lambda: engine.contexts),
        ):
            Gauge(name, help_text, registry=registry).set_function(read)

    def answered(self, reply: Reply, queue_ms: float) -> None:
        self._first_token.observe(reply.timings.ttft_ms / 1000)
        self._answer.observe(reply.timings.total_ms / 1000)
        self._queue.observe(queue_ms / 1000)
        usage = reply.usage
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("image", usage.image_tokens),
            ("completion", usage.completion_tokens),
        ):
            self._tokens.labels(kind).inc(count)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _seconds(self, name: str, help_text: str) -> Histogram:
        return Histogram(
            f"edgevlm_{name}_seconds", help_text, buckets=_SECONDS, registry=self._registry
        )
