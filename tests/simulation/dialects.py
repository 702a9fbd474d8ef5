"""How four Kafka REST proxies say what became of each record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from meter_worker.http_link import Reply

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

DIALECTS = ("confluent", "karapace", "strimzi", "redpanda")
STORED, REJECTED, RETRIABLE, UNKNOWN = "stored", "rejected", "retriable", "unknown"

Error: TypeAlias = "tuple[int, str]"

# What each says of a record that will never do, and of one that may do later.
_REJECTED: dict[str, Sequence[Error]] = {
    "confluent": [(50002, "Kafka error: the record is invalid")],
    "karapace": [(1, "The server has a configurable maximum message size to avoid trouble")],
    "strimzi": [(500, "The message is 1048656 bytes, larger than the max.request.size setting")],
    "redpanda": [(10, "message_too_large"), (87, "invalid_record")],
}
_RETRIABLE: dict[str, Sequence[Error]] = {
    "confluent": [(50003, "Kafka retriable error")],
    "karapace": [(2, "no leader"), (1, "timed out waiting to publish message")],
    "strimzi": [(500, "Expiring 1 record(s): 30000 ms has passed since batch creation")],
    "redpanda": [(6, "not_leader_for_partition"), (7, "request_timed_out")],
}
JSON_HEADERS = {"Content-Type": "application/vnd.kafka.json.v2+json"}


class Produced(NamedTuple):
    """What became of one record, and in which partition."""

    fate: str
    partition: int


def render(dialect: str, produced: Sequence[Produced], draw: random.Random) -> Reply:
    """Return the proxy's answer to records of these fates."""
    if dialect == "redpanda":
        # One entry a partition, whatever the number of records; in the order of the records,
        # so that as many entries as records can be told apart.
        by_partition = {one.partition: one for one in produced}
        entries = [_entry(dialect, one, draw) for one in by_partition.values()]
    else:
        entries = [_entry(dialect, one, draw) for one in produced]
    failed = any(one.fate != STORED for one in produced)
    status = 422 if dialect == "karapace" and failed else 200
    return json_reply(status, {"offsets": entries})


def json_reply(status: int, body: object, headers: dict[str, str] | None = None) -> Reply:
    """Return an answer with a JSON body."""
    return Reply(status, JSON_HEADERS | (headers or {}), json.dumps(body).encode())


def _entry(dialect: str, one: Produced, draw: random.Random) -> dict[str, Any]:
    offset = draw.randrange(1, 10**6)
    if one.fate == STORED:
        entry: dict[str, Any] = {"partition": one.partition, "offset": offset}
        return entry | {"error_code": None, "error": None} if dialect == "confluent" else entry
    errors = (_REJECTED if one.fate == REJECTED else _RETRIABLE)[dialect]
    code, text = draw.choice(errors)
    return {
        "confluent": {"partition": None, "offset": None, "error_code": code, "error": text},
        "karapace": {"error_code": code, "error": text},
        "strimzi": {"error_code": code, "message": text},
        "redpanda": {"partition": one.partition, "error_code": code, "offset": -1},
    }[dialect]
