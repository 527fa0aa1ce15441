"""What a server counts, for Prometheus. Times are in seconds."""

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one server. Labels have few values: no name that a stranger chose becomes one."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("promptprior_requests", "Requests", ("route", "status"), registry=own)
        self.seconds = Histogram(
            "promptprior_request_seconds", "From first byte to last", ("route",), registry=own, buckets=SECONDS
        )
        self.waited = Histogram("promptprior_queue_seconds", "Waiting for the model", registry=own, buckets=SECONDS)
        self.batch_seconds = Histogram("promptprior_batch_seconds", "Answering", registry=own, buckets=SECONDS)
        self.batch_requests = Histogram("promptprior_batch_requests", "Of a batch", registry=own, buckets=SIZES)
        self.batch_texts = Histogram("promptprior_batch_texts", "Of a batch", registry=own, buckets=SIZES)
        self.tokens = Counter("promptprior_tokens", "Tokens of texts, and generated", ("kind",), registry=own)
