"""What Prometheus reads at `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # A second time series for each, which nobody reads.

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """A server's figures. Each server has its own, so that two can live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "graft_requests",
            "Requests answered, by what was asked and status code.",
            ["route", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "graft_request_seconds", "From a request's headers to its answer.", ["route"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.decode = Histogram(
            "graft_decode_seconds", "Decoding and resizing one picture.", buckets=_SECONDS, registry=registry
        )
        self.queue = Histogram(
            "graft_queue_seconds",
            "A picture's wait, for decoding and for its batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inference = Histogram(
            "graft_inference_seconds", "Computing one batch.", ["model"], buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "graft_batch_pictures", "Pictures computed at once.", ["model"], buckets=_PICTURES, registry=registry
        )
        self.refusals = Counter(
            "graft_refusals", "Requests refused, and pictures in a form, by reason.", ["reason"], registry=registry
        )
        self.waiting = Gauge(
            "graft_waiting_pictures", "Pictures that are admitted, and not yet being computed.", registry=registry
        )
        self.version = Gauge(
            "graft_model_version", "1 for the state that each version is in.", ["model", "version", "state"],
            registry=registry,
        )  # fmt: skip
        self.loads = Counter(
            "graft_model_loads", "Attempts to load a version, by result.", ["model", "result"], registry=registry
        )

        self.samples = Counter(
            "graft_samples",
            "Pictures chosen for the log of samples: written, dropped as the queue was full, failed to be written.",
            ["model", "result"],
            registry=registry,
        )

    def text(self) -> bytes:
        found: bytes = generate_latest(self._registry)
        return found
