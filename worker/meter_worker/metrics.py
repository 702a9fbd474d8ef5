"""The figures of a worker in the text format of Prometheus, by its official client.

The only module that knows that client, which the extra `metrics` installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from meter_worker.backend import (
    Ambiguous,
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Unavailable,
)
from meter_worker.exhaustive import assert_never
from meter_worker.health import oldest_pending_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from meter_lib.outbox import OutboxStatus
    from meter_worker.backend import Outcome

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

VERDICTS = ("delivered", "errors", "refused", "ambiguous", "unavailable", "interrupted")
# From a request in the same rack to a large one over a satellite.
_BUCKETS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)


class Metrics:
    """Counts requests as they are made; whatever is in the outbox is read when asked for.

    No label names a tenant or a device: their number has no bound.
    """

    def __init__(self) -> None:
        # They would be a second series for each counter, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs has no types
        self._requests = CollectorRegistry()
        self._attempts = Counter(
            "meter_attempts",
            "Requests to the events API of this process, by what became of them.",
            ["verdict"],
            registry=self._requests,
        )
        for verdict in VERDICTS:  # a series that begins at its first event hides that event
            self._attempts.labels(verdict)
        self._seconds = Histogram(
            "meter_request_seconds",
            "Seconds until a request to the events API was answered, or had failed.",
            buckets=_BUCKETS_SECONDS,
            registry=self._requests,
        )

    def observe(self, outcome: Outcome, seconds: float) -> None:
        """Count a request to the events API. May be called from several threads at once."""
        self._attempts.labels(_verdict(outcome)).inc()
        self._seconds.observe(seconds)

    def text(self, status: OutboxStatus, now: int) -> bytes:
        """Return all figures, those of the outbox as of this status."""
        outbox = CollectorRegistry()
        outbox.register(_OutboxFigures(status, now))
        return generate_latest(outbox) + generate_latest(self._requests)


class _OutboxFigures(Collector):
    def __init__(self, status: OutboxStatus, now: int) -> None:
        self._status = status
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; a total counts since the outbox was made."""
        status = self._status
        is_up = all(link.down_since is None for link in status.links)
        gauges = {
            "meter_pending_events": ("Events that wait for delivery.", status.pending),
            "meter_oldest_pending_seconds": (
                "Age of the oldest pending event, 0 where none is pending.",
                oldest_pending_seconds(status, self._now) or 0,
            ),
            "meter_dead_letters": ("Events that are no longer tried.", status.dead),
            "meter_link_up": ("1 while no service is known to be down, else 0.", int(is_up)),
            "meter_outbox_bytes": ("Outbox on disk, its write-ahead log included.", status.bytes),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value=value)
        totals = {
            "meter_accepted_events": ("Events recorded.", status.accepted),
            "meter_delivered_events": ("Events delivered.", status.delivered),
            "meter_dead_lettered_events": ("Events given up.", status.dead_lettered),
            "meter_removed_events": ("Events removed undelivered.", status.removed),
        }
        for name, (meaning, value) in totals.items():
            yield CounterMetricFamily(name, meaning, value=value)


def _verdict(outcome: Outcome) -> str:
    match outcome:
        case Answered(verdicts):
            whole = all(isinstance(one, Delivered) for one in verdicts)
            verdict = "delivered" if whole else "errors"
        case Refused():
            verdict = "refused"
        case Ambiguous():
            verdict = "ambiguous"
        case Unavailable():
            verdict = "unavailable"
        case Interrupted():
            verdict = "interrupted"
        case _:
            assert_never(outcome)
    return verdict
