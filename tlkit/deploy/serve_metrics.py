"""What /metrics tells, in the form that Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """waiting, held_bytes: asked when the page is."""

    def __init__(self, *, waiting: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("tlkit_requests", "Requests answered.", ("path", "status"), registry=self._registry)
        self.seconds = Histogram(
            "tlkit_request_seconds", "From the request's head to its answer.", ("path",), buckets=SECONDS, registry=self._registry
        )
        self.batches = Histogram("tlkit_batch_pictures", "Pictures in the network together.", buckets=PICTURES, registry=self._registry)
        self.pictures = Counter("tlkit_pictures", "Pictures answered.", registry=self._registry)
        queue = Gauge("tlkit_waiting_pictures", "Pictures between their upload and their answer.", registry=self._registry)
        queue.set_function(waiting)
        held = Gauge("tlkit_held_bytes", "Bytes of uploads that are being read or decoded.", registry=self._registry)
        held.set_function(held_bytes)

    def text(self) -> bytes:
        return generate_latest(self._registry)
