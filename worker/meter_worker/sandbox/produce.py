"""The events API: what a produce request holds, why it is refused, and how it is answered.

Pure: a request comes in, records or an answer go out. The order of the checks is the proxy's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from meter_worker.sandbox.bodies import decoded_body, invalid_json, parsed_json
from meter_worker.sandbox.exchange import JSON, KAFKA_JSON, Answer, Refused, error_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meter_worker.sandbox.exchange import Request

PARTITIONS = 3
"""Partitions of the topic. More than one, so that no test can lean on an order across batches."""

_JSON_TYPES = {
    KAFKA_JSON,
    "application/vnd.kafka.json.v1+json",
    "application/vnd.kafka.json+json",
}
# The proxy takes records of these types for base64 text.
_BINARY_TYPES = {
    "",
    "application/json",
    "application/octet-stream",
    "application/vnd.kafka+json",
    "application/vnd.kafka.v1+json",
    "application/vnd.kafka.v2+json",
    "application/vnd.kafka.binary.v1+json",
    "application/vnd.kafka.binary.v2+json",
}
_ACCEPTABLE = re.compile(
    r"(?:application|\*)/(?:json|\*|vnd\.kafka(?:\.[a-z]+)?(?:\.v[12])?\+json)"
)
_REQUEST_MEMBERS = {"records", "key_schema", "key_schema_id", "value_schema", "value_schema_id"}
_RECORD_MEMBERS = {"key", "value", "partition"}
# From here on codes are those of Confluent's proxy, which writes the place of no record as null.
_CONFLUENT_CODES = 10_000


compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""JSON as the proxy writes it: no blanks, text as it is."""


class Subject(NamedTuple):
    """Whom a record is about: from its value where that says so, else from the headers."""

    tenant: str | None
    device: str | None
    meter: str | None

    def fits(self, wanted: Subject) -> bool:
        """Tell whether this is the wanted tenant, device and meter; None there takes any."""
        return all(want in (None, have) for want, have in zip(wanted, self, strict=True))


EVERYBODY = Subject(None, None, None)


@dataclass(frozen=True, slots=True)
class ProduceRecord:
    """One record of a request, its key and value also as the compact JSON that is stored.

    `key_json` is empty for an empty key and None for none; `value_json` is None for a falsy
    value, which is stored as an empty message.
    """

    key_json: str | None
    value_json: str | None
    value: Any  # any JSON at all
    partition: int | None
    subject: Subject

    def member(self, name: str) -> object:
        """Give a member of the value, None where it has none."""
        return self.value.get(name) if isinstance(self.value, dict) else None


@dataclass(frozen=True, slots=True)
class RecordError:
    """Why one record was not stored while its neighbours were."""

    code: int
    text: str


_NO_SUCH_PARTITION = RecordError(
    2, "This request is for a topic or partition that does not exist on this broker."
)


def read_records(request: Request, topic: str, known_topic: str) -> list[ProduceRecord]:
    """Give the records of a produce request; raises `Refused` where the proxy refuses it."""
    body = parsed_json(decoded_body(request.body, request.headers.get("content-encoding", "")))
    if not isinstance(body, dict):
        raise Refused(error_answer(400, "Malformed request", content_type=JSON))
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if media_type not in _JSON_TYPES and media_type not in _BINARY_TYPES:
        raise Refused(error_answer(415, "HTTP 415 Unsupported Media Type"))
    if not _ACCEPTABLE.search(request.headers.get("accept") or "*/*"):
        raise Refused(error_answer(406, "HTTP 406 Not Acceptable"))
    if topic != known_topic:
        raise Refused(error_answer(404, f"Topic {topic} not found", error_code=40401))
    records = body.get("records")
    if not records or body.keys() - _REQUEST_MEMBERS:
        raise Refused(invalid_format())
    if not isinstance(records, list):
        raise Refused(error_answer(400, "'records' must be an array"))
    sender = sender_of(request.headers)
    try:
        checked = [_checked(record, sender) for record in records]
    except RecursionError:
        # So deep that it could just be read, but not be written again.
        raise Refused(invalid_json()) from None
    if media_type in _BINARY_TYPES:
        _refuse_binary(checked)
    return checked


def _checked(record: Any, sender: Subject) -> ProduceRecord:
    if not isinstance(record, dict):
        raise Refused(error_answer(400, "Produce record must be an object"))
    partition = record.get("partition")
    if partition is not None:
        try:
            partition = int(partition)
        except (TypeError, ValueError, OverflowError):
            message = f"partition is not a valid int: {partition}"
            raise Refused(error_answer(500, message)) from None
    if record.keys() - _RECORD_MEMBERS:
        raise Refused(invalid_format())
    value = record.get("value")
    key = record.get("key")
    return ProduceRecord(
        key_json=compact(key) if key else None if key is None else "",
        value_json=compact(value) if value else None,
        value=value,
        partition=partition,
        subject=_subject(value, sender),
    )


def sender_of(headers: Mapping[str, str]) -> Subject:
    """Give the tenant and device that the headers name, percent-decoded."""
    tenant, device = headers.get("x-tenant-id"), headers.get("x-device-id")
    return Subject(unquote(tenant) if tenant else None, unquote(device) if device else None, None)


def _subject(value: Any, sender: Subject) -> Subject:
    if not isinstance(value, dict):
        return sender
    tenant, device, meter = map(value.get, ("tenant_id", "device_id", "meter_id"))
    return Subject(
        tenant if isinstance(tenant, str) else sender.tenant,
        device if isinstance(device, str) else sender.device,
        meter if isinstance(meter, str) else None,
    )


def _refuse_binary(records: list[ProduceRecord]) -> None:
    # Text that really is base64 would be stored by the proxy; nobody sends such usage events.
    for record in records:
        for text in (record.key_json, record.value_json):
            if text:
                raise Refused(error_answer(400, f"data={text}  is not a base64 string."))


def partition_error(record: ProduceRecord) -> RecordError | None:
    """Give the error of a record that asks for a partition the topic does not have."""
    if record.partition is None or 0 <= record.partition < PARTITIONS:
        return None
    return _NO_SUCH_PARTITION


def entries_for(
    records: Iterable[ProduceRecord],
    errors: Iterable[RecordError | None],
    positions: Iterable[tuple[int, int]],
) -> list[dict[str, object]]:
    """Give one entry a record, in their order.

    `positions` are partition and offset of the records without an error.
    """
    left = iter(positions)
    entries: list[dict[str, object]] = []
    for record, error in zip(records, errors, strict=True):
        if error is not None:
            entry: dict[str, object] = {"error": error.text, "error_code": error.code}
            if error.code >= _CONFLUENT_CODES:
                entry |= {"offset": None, "partition": None}
            entries.append(entry)
            continue
        partition, offset = next(left)
        if record.value_json is None:
            # The proxy does not wait for an empty message, so it knows no place for it.
            partition, offset = 0, -1
        entries.append({"offset": offset, "partition": partition})
    return entries


def entries_answer(entries: list[dict[str, object]]) -> Answer:
    """Give the proxy's answer around these entries: 422 where one is an error, else 200."""
    status = 422 if any("error" in entry for entry in entries) else 200
    body = {"key_schema_id": None, "offsets": entries, "value_schema_id": None}
    return Answer(status, KAFKA_JSON, compact(body).encode())


def invalid_format() -> Answer:
    """Give the proxy's answer to a request that it takes for senseless as a whole."""
    return error_answer(422, "Invalid request format")
