"""What the sandbox has stored: records by partition and offset, kept in memory until emptied."""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meter_worker.sandbox.produce import EVERYBODY, PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meter_worker.sandbox.exchange import Request
    from meter_worker.sandbox.produce import ProduceRecord, Subject


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One record as stored. Headers are as they were sent; `received_at` is in milliseconds."""

    topic: str
    partition: int
    offset: int
    key_json: str | None
    value_json: str | None
    tenant_id: str | None
    device_id: str | None
    request_key: str | None
    received_at: int
    idempotency_key: str | None
    subject: Subject

    @property
    def key(self) -> Any:
        """The key as JSON gives it back: None for no key, "" for an empty one."""
        return json.loads(self.key_json) if self.key_json else self.key_json

    @property
    def value(self) -> Any:
        """The value as JSON gives it back, None for an empty message; read anew at each look."""
        return None if self.value_json is None else json.loads(self.value_json)

    def as_json(self) -> dict[str, Any]:
        """Give the record as `/sandbox/records` shows it."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "key": self.key,
            "value": self.value,
            "tenant_id": self.tenant_id,
            "device_id": self.device_id,
            "request_key": self.request_key,
            "received_at": self.received_at,
        }


class Store:
    """The records of all topics. Thread-safe; a request is stored as a whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[StoredRecord] = []
        self._times_by_key: Counter[str] = Counter()
        self._next_offsets: Counter[tuple[str, int]] = Counter()
        self._turn = 0
        self._subjects: dict[Subject, Subject] = {}

    def append(
        self, topic: str, records: Sequence[ProduceRecord], request: Request
    ) -> list[tuple[int, int]]:
        """Store the records of one request; gives the partition and offset of each.

        Equal keys go to one partition. What has no key goes where this request's turn puts it.
        """
        if not records:
            return []
        headers = request.headers
        tenant_id, device_id = headers.get("x-tenant-id"), headers.get("x-device-id")
        request_key = headers.get("idempotency-key")
        positions: list[tuple[int, int]] = []
        with self._lock:
            self._turn += 1
            for record in records:
                partition = self._partition(record)
                offset = self._next_offsets[topic, partition]
                self._next_offsets[topic, partition] = offset + 1
                positions.append((partition, offset))
                key = record.member("idempotency_key")
                if not isinstance(key, str):
                    key = None
                else:
                    self._times_by_key[key] += 1
                self._records.append(
                    StoredRecord(
                        topic,
                        partition,
                        offset,
                        record.key_json,
                        record.value_json,
                        tenant_id,
                        device_id,
                        request_key,
                        request.received_at,
                        key,
                        # One object for all records of a subject: there may be very many.
                        self._subjects.setdefault(record.subject, record.subject),
                    )
                )
        return positions

    def _partition(self, record: ProduceRecord) -> int:
        if record.partition is not None:
            return record.partition
        if record.key_json is not None:
            return zlib.crc32(record.key_json.encode()) % PARTITIONS
        return self._turn % PARTITIONS

    def clear(self) -> int:
        """Empty the store and say how many records went; offsets go on where they were."""
        with self._lock:
            removed = len(self._records)
            self._records.clear()
            self._times_by_key.clear()
            self._subjects.clear()
        return removed

    def records(self, wanted: Subject = EVERYBODY) -> list[StoredRecord]:
        """List the records in the order they were stored; of one tenant, device, meter if given."""
        with self._lock:
            records = self._records.copy()
        if wanted == EVERYBODY:
            return records
        return [record for record in records if record.subject.fits(wanted)]

    @property
    def totals(self) -> tuple[int, int]:
        """How many records are stored, copies included, and with how many idempotency keys."""
        with self._lock:
            return len(self._records), len(self._times_by_key)

    @property
    def times_by_key(self) -> dict[str, int]:
        """How many times each idempotency key is stored."""
        with self._lock:
            return dict(self._times_by_key)


def times_by_key(records: Iterable[StoredRecord]) -> dict[str, int]:
    """Count how many of these records have each idempotency key."""
    return dict(Counter(r.idempotency_key for r in records if r.idempotency_key is not None))
