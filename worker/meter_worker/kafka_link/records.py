"""What is stored of a record: the same bytes as by a REST proxy."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import NamedTuple

__all__ = ["Record"]

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_FINGERPRINT_BYTES = 9


class Record(NamedTuple):
    """A record, as Kafka stores it."""

    outbox_id: str
    key: bytes
    """JSON, so equal for the events of a stream, which keeps them in one partition."""
    value: bytes
    idempotency_key: str
    fingerprint: str
    """Tells its event from all others, for whoever looks after a crash."""

    @classmethod
    def of(cls, text: str) -> Record:
        """Return what the JSON text of a record says."""
        record = json.loads(text)
        value = record["value"]
        # Keys that callers chose may be the same on another device. No id holds a line break.
        name = "\n".join([value["tenant_id"], value["device_id"], value["idempotency_key"]])
        digest = hashlib.sha256(name.encode()).digest()[:_FINGERPRINT_BYTES]
        return cls(
            value["outbox_id"],
            _compact(record["key"]).encode(),
            _compact(value).encode(),
            value["idempotency_key"],
            base64.urlsafe_b64encode(digest).decode(),
        )
