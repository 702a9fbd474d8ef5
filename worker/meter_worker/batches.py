"""Which events share a request: of one tenant and device, bounded by count and bytes."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from meter_worker.wire import BODY_OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meter_lib.outbox import DueEvent
    from meter_worker.doubts import Doubts

__all__ = ["Ready", "batches", "by_tenant"]


class Ready(NamedTuple):
    """An event whose customer is known, and its record."""

    event: DueEvent
    record: str


def batches(
    ready: Sequence[Ready], doubts: Doubts, *, most: Callable[[], int], most_bytes: int
) -> Iterator[list[Ready]]:
    """Yield the events in requests, those of tenants with the least trouble first.

    In order within a device. `most` is asked for each event anew: how many a request
    may carry changes with what becomes of the ones before.
    """

    def device(one: Ready) -> tuple[str, str]:
        return one.event.tenant_id, one.event.device_id

    def turn(one: Ready) -> tuple[int, str, str]:
        return doubts.trouble_of(one.event.tenant_id), *device(one)

    # sorted() keeps the order within a device.
    for _, theirs in groupby(sorted(ready, key=turn), key=device):
        batch: list[Ready] = []
        size = BODY_OVERHEAD_BYTES
        for one in theirs:
            # With its comma; characters beyond ASCII count as what they are in UTF-8.
            record_size = len(one.record.encode()) + 1
            if batch and (
                len(batch) >= most()
                or size + record_size > most_bytes
                or doubts.goes_alone(batch[-1].event)
                or doubts.goes_alone(one.event)
                # Those behind an event that is tried again must not be stored before it.
                or batch[-1].event.attempts
            ):
                yield batch
                batch, size = [], BODY_OVERHEAD_BYTES
            batch.append(one)
            size += record_size
        if batch:
            yield batch


def by_tenant(events: Sequence[DueEvent]) -> dict[str, list[DueEvent]]:
    """Return the events of each tenant, in their order."""
    tenants: dict[str, list[DueEvent]] = {}
    for event in events:
        tenants.setdefault(event.tenant_id, []).append(event)
    return tenants
