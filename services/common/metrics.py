"""Every Prometheus metric of the gateway and the signal service: names, labels and buckets, once.

Seconds and counts are base units, as Prometheus wants them.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Seconds. Fine around the tens of milliseconds where the service objective lies."""

COUNT_BUCKETS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)

AGE_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3_600.0, 6 * 3_600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0, 365 * 86_400.0)
"""Seconds, from "just now" to a year."""

RATIO_BUCKETS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Embeddings generated for each one kept; the paper reports 6 for `uc` and 3 for `mt_oc`."""


def process_registry() -> CollectorRegistry:
    """A process's own registry, with its CPU, memory and file descriptors (not the global one)."""
    # "Since when" of each counter: a third of all series, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class RpcMetrics:
    """What every process with a gRPC port exports: calls by method and code, with their time; ended streams."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "pinrec_rpc_seconds",
            "Time of a gRPC call inside the process, by method and status code.",
            ("method", "code"),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.streams = Counter(
            "pinrec_rpc_streams",
            "Ended gRPC streams, by method and status code.",
            ("method", "code"),
            registry=registry,
        )


class AccessMetrics:
    """Of a process with a tokens file."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "pinrec_client_calls",
            "Calls by client and result: admitted, limited, not_allowed; unauthenticated has no client.",
            ("client", "result"),
            registry=registry,
        )


class GatewayMetrics:
    """One user's request is one observation, whether it came alone or in a batch; canaries are not requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.request_seconds = Histogram(
            "pinrec_gateway_request_seconds",
            "Time of one user's request in the gateway, by status code.",
            ("code",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "pinrec_gateway_stage_seconds",
            "A stage's own work for one answered request; stage gateway is what the other stages do not explain.",
            ("stage",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.compression_ratio = Histogram(
            "pinrec_gateway_compression_ratio",
            "Embeddings generated for each embedding kept, of one answered request.",
            buckets=RATIO_BUCKETS,
            registry=registry,
        )

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pinrec_gateway_{name}", text, labels, registry=registry)

        self.shed = counter(
            "shed", "Requests refused at once: no place, or no time left for one.", "reason", "priority"
        )
        self.retries = counter("retries", "Requests that a stage left unanswered and that were sent again.", "result")
        self.cold_start = counter("cold_start", "Answered requests of users without a stored event.")
        self.degraded = counter("degraded", "Answered requests that were marked as degraded.", "reason")
        self.mixed_release = counter("mixed_release", "Answers dropped: a stage worked for another release.")
        self.candidates = counter("candidates", "Candidates served, fills included.", "outcome")
        self.filled = counter("filled", "Candidates from the popular lists, since retrieval came up short.", "outcome")
        self.canary = counter("canary", "Canary requests through the ensemble.", "code")
        self.release_switches = counter("release_switches", "Flips from one release to another.")
        self.release_tries = counter("release_tries", "Releases tried with their golden requests.", "result")
        # A series that begins at 1 has not increased for Prometheus: an alert on the first failure needs a 0 before.
        for result in ("passed", "failed"):
            self.release_tries.labels(result)
        self.release_watermark_ms = Gauge(
            "pinrec_gateway_release_watermark_ms",
            "Newest event that the active release was trained on, Unix milliseconds; 0 = none.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "pinrec_gateway_in_flight", "Requests that are in the ensemble right now.", registry=registry
        )
        self.active_release = Gauge(
            "pinrec_gateway_active_release", "Release that requests are admitted for; 0 = none.", registry=registry
        )
        self.places = Gauge(
            "pinrec_gateway_places", "Requests that may be in the ensemble at once, by its latency.", registry=registry
        )
        self.loop_lag = Gauge(
            "pinrec_gateway_loop_lag_seconds", "How late the process's event loop runs what is due.", registry=registry
        )
        self.ready = Gauge("pinrec_gateway_ready", "1 while the last canaries passed.", registry=registry)


class KeeperMetrics:
    """Triton's keeper's own; Triton itself exports `nv_inference_*` on its port."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pinrec_keeper_{name}", text, labels, registry=registry)

        self.ready = Gauge("pinrec_keeper_ready", "1 while Triton answers canaries.", registry=registry)
        self.canaries = counter("canaries", "Canary requests to this Triton.", "result")
        self.repairs = counter("repairs", "Stages that were dead or stuck and were loaded again.", "stage", "result")


class SignalsMetrics:
    """The signal service's own; its calls are in `pinrec_rpc_seconds`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"pinrec_signals_{name}", text, buckets=buckets, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"pinrec_signals_{name}", text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pinrec_signals_{name}", text, labels, registry=registry)

        self.append_seconds = histogram(
            "append_seconds", "Time until a request's events were durable, unary or streamed.", LATENCY_BUCKETS
        )
        self.append_events = histogram("append_events", "Events of one request that were made durable.", COUNT_BUCKETS)
        self.event_lag_seconds = histogram(
            "event_lag_seconds", "Age of a request's last event when it was durable, and so readable.", AGE_BUCKETS
        )
        self.events = counter("events", "Events of AppendEvents by outcome; OK = acknowledged as durable.", "code")
        self.expired_events = counter("expired_events", "Events dropped since the batch view has long held them.")
        self.store_problem = gauge("store_problem", "1 while the realtime view cannot be read or written.")
        self.histories = counter("histories", "Histories answered.")
        self.cold_histories = counter("cold_histories", "Of them, histories without a stored event.")
        self.degraded_histories = counter("degraded_histories", "Of them, histories of the batch view alone.")
        self.realtime_events = counter("realtime_events", "Events newer than the batch view in the histories.")
        self.history_age_seconds = histogram(
            "history_age_seconds", "Age of a history's newest stored event when it was asked for.", AGE_BUCKETS
        )
        self.watermark_ms = gauge("watermark_ms", "End of the batch view, Unix milliseconds; 0 = none.")
        self.batch_view_version = gauge("batch_view_version", "Version of the batch view in use; 0 = none.")


class IngestMetrics:
    """The Kafka consumer's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"pinrec_ingest_{name}", text, registry=registry)

        self.events = counter("events", "Messages whose event is durable; one may come again.")
        self.dead_letters = counter("dead_letters", "Messages that can never be accepted.")
        self.failures = counter("failures", "Batches that could not be appended and are read again.")
        self.lag = Gauge(
            "pinrec_ingest_lag", "Messages of a partition not committed yet.", ("partition",), registry=registry
        )


class ItemsMetrics:
    """The item service's own; its calls are in `pinrec_rpc_seconds`, where a held GetChanges counts with its wait."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"pinrec_items_{name}", text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pinrec_items_{name}", text, labels, registry=registry)

        self.changes = counter("changes", "Items whose change was acknowledged as durable.", "kind")
        self.told = counter("told", "Changes handed to those who follow, each time that one is told.")
        self.followers = gauge("followers", "Calls of GetChanges held now: who follows and is up to date.")
        self.sequence = gauge("sequence", "Number of the last change.")
        self.added = gauge("added", "Items of the log whose newest state is added.")
        self.deleted = gauge("deleted", "Items of the log whose newest state is deleted.")
