"""What one web process counts about itself; the rest of ``/metrics`` is read from the database."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

HTTP_SECONDS = Histogram(
    "workbench_http_request_seconds",
    "Time to answer a request.",
    ("method", "status"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)
LIVE_SESSIONS = Gauge("workbench_live_sessions", "Open live sockets of this process.", registry=REGISTRY)
TOGGLES = Counter("workbench_ws_toggles", "Edit plans received over live sockets.", registry=REGISTRY)
