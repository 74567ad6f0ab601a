"""What Prometheus reads: queue, batches, latencies, refusals, rows of each prompt. Nothing of a text is in it."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from bmtpt.serve.gate import Visit
from bmtpt.serve.service import Ask, Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one service, which `batch` and `visit` keep."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service) -> None:
        self._service = service
        self._counted: set[str] = set()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("bmtpt_queue_rows", "Rows that wait", registry=registry).set_function(lambda: service.batcher.depth)
        Gauge("bmtpt_prompts", "Prompts that are loaded", registry=registry).set_function(
            lambda: len(service.shelf.snapshot())
        )
        self._batch_rows = Histogram("bmtpt_batch_rows", "Rows in a batch", buckets=ROWS, registry=registry)
        self._pass_seconds = Histogram(
            "bmtpt_batch_seconds", "Time of a batch in the model", buckets=SECONDS, registry=registry
        )
        self._rows = Counter("bmtpt_rows", "Rows answered", ["prompt"], registry=registry)
        self._requests = Counter("bmtpt_requests", "Requests answered", ["route", "status"], registry=registry)
        self._request_seconds = Histogram(
            "bmtpt_request_seconds", "Time of a request that a route answered", ["route"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._refusals = Counter("bmtpt_refusals", "Requests that were refused", ["reason"], registry=registry)

    def batch(self, asked: Sequence[Ask], seconds: float) -> None:
        """Count a batch that the model has answered."""
        self._batch_rows.observe(len(asked))
        self._pass_seconds.observe(seconds)
        for each in asked:
            self._rows.labels(each.served.name).inc()
            self._counted.add(each.served.name)

    def visit(self, visit: Visit) -> None:
        """Count a request."""
        self._requests.labels(visit.route or "none", visit.status).inc()
        if visit.refused:
            self._refusals.labels(visit.refused).inc()
        elif visit.route:
            self._request_seconds.labels(visit.route).observe(visit.seconds)

    def text(self) -> bytes:
        """Return all figures in Prometheus's text format; those of prompts that are gone have ended."""
        for name in self._counted - set(self._service.shelf.snapshot()):
            self._counted.discard(name)
            self._rows.remove(name)
        return generate_latest(self._registry)
