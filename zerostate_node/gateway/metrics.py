"""What the gateway counts; labels are route templates and known methods, never a raw path."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class HttpMetrics:
    """The gateway's own metrics, in the registry of the whole node."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "zerostate_http_requests",
            "Requests answered, by route template.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "zerostate_http_request_seconds",
            "Time from a request's head to the end of its answer.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.streams = Gauge(
            "zerostate_http_event_streams",
            "Event streams open.",
            registry=registry,
        )
        self.at_work = Gauge(
            "zerostate_http_requests_at_work",
            "Requests being answered, event streams not counted.",
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int, took_s: float | None) -> None:
        """Count one request; `took_s` None leaves it out of the histogram (event streams)."""
        known = method if method in _METHODS else "OTHER"
        self._requests.labels(known, route, str(status)).inc()
        if took_s is not None:
            self._seconds.labels(route).observe(took_s)

    def text(self) -> bytes:
        """All of the registry, in the format that Prometheus scrapes."""
        return generate_latest(self._registry)
