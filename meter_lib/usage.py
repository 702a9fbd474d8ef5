"""A usage event: what the caller said, checked and frozen.

Whoever holds a `UsageEvent` made here may store and send it without another look. It knows no
outbox, no clock and no network.

Annotations are not postponed here: that would be one of the three milliseconds that this module
takes to import.
"""

import functools
import json
import json.encoder
from collections.abc import Mapping
from typing import Any, NamedTuple

from meter_lib.arguments import (
    checked_id,
    checked_key,
    checked_metadata,
    checked_name,
    checked_text,
    checked_time,
    checked_usage,
    shown,
)
from meter_lib.errors import InvalidUsage, InvalidUsageType

try:
    # The standard library's `random` takes sha512 the same way: hashlib would load OpenSSL,
    # which costs the host program 4 MiB of memory for one checksum.
    from _blake2 import blake2b
except ImportError:  # the name is private and may go
    from hashlib import blake2b

__all__ = [
    "UsageEvent",
    "digest",
    "fingerprint",
    "session_event",
    "shown",
    "usage_event",
    "usage_event_from",
]

MOST_EVENT_BYTES = 64 * 1024
# The function behind json.dumps(text, ensure_ascii=False), without its 2 µs of preparations.
_quoted = json.encoder.encode_basestring
# A program uses the same few ids and names of metadata again and again: what has been checked
# is remembered, so many of each at most.
_MOST_REMEMBERED = 1024


class UsageEvent(NamedTuple):
    """What happened, as the caller said it. Made by `usage_event`, which checks every member."""

    tenant_id: str
    device_id: str
    meter_id: str
    total_usage: int | None
    start_time: int | None  # milliseconds, as all times here
    end_time: int | None
    timestamp: int | None  # the caller's explicit time of occurrence
    metadata: dict[str, str]  # as it is sent
    idempotency_key: str | None  # the caller's own; None: the outbox makes one
    payload: str  # JSON text of what the caller said, ready to be completed and sent

    def event_time(self, now: int) -> int:
        """When it happened: `timestamp`, else `end_time`, else `start_time`, else `now`."""
        said = self.time_said()
        return now if said is None else said

    def time_said(self) -> int | None:
        """When it happened, or None where the caller left that to us."""
        if self.timestamp is not None:
            return self.timestamp
        return self.start_time if self.end_time is None else self.end_time

    def fingerprint(self) -> bytes:
        """16 bytes that are equal if and only if the content is: all but `timestamp` and the key.

        Outboxes keep it, so it must stay the same from release to release.
        """
        return digest(self.payload) if len(self.metadata) < 2 else fingerprint(self.payload)


def fingerprint(payload: str) -> bytes:
    """`UsageEvent.fingerprint` of the event with this payload."""
    said = json.loads(payload)
    if len(said["metadata"]) > 1:
        said["metadata"] = dict(sorted(said["metadata"].items()))
        payload = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    return digest(payload)


def digest(text: str) -> bytes:
    """16 bytes that are equal if and only if the texts are, in this release as in the next."""
    return blake2b(text.encode(), digest_size=16).digest()


def usage_event(
    tenant_id: str,
    device_id: str,
    meter_id: str,
    total_usage: int | None = None,
    start_time: int | None = None,
    end_time: int | None = None,
    *,
    timestamp: int | None = None,
    metadata: Mapping[str, str | float] | None = None,
    idempotency_key: str | None = None,
) -> UsageEvent:
    """The event that these arguments describe, checked in full.

    Raises `InvalidUsage` or `InvalidUsageType`: they name the argument and what would be right.
    """
    if not type(tenant_id) is type(device_id) is type(meter_id) is str:
        tenant_id, device_id, meter_id = _id_texts(tenant_id, device_id, meter_id)
    ids = _ids(tenant_id, device_id, meter_id)
    if total_usage is not None:
        total_usage = checked_usage(total_usage)
    elif start_time is None and end_time is None:
        raise InvalidUsage("nothing was used: give total_usage, start_time or end_time")
    if start_time is not None:
        start_time = checked_time("start_time", start_time)
    if end_time is not None:
        end_time = checked_time("end_time", end_time)
        if start_time is not None and end_time < start_time:
            raise InvalidUsage(
                f"end_time is {end_time}: it must not be before start_time, {start_time}"
            )
    if timestamp is not None:
        timestamp = checked_time("timestamp", timestamp)
    sent_metadata = checked_metadata(metadata) if metadata is not None else {}
    if idempotency_key is not None:
        idempotency_key = checked_key(idempotency_key)
    payload = _payload(ids, total_usage, start_time, end_time, sent_metadata)
    _check_size(payload)
    return UsageEvent(
        tenant_id,
        device_id,
        meter_id,
        total_usage,
        start_time,
        end_time,
        timestamp,
        sent_metadata,
        idempotency_key,
        payload,
    )


def session_event(
    tenant_id: str,
    device_id: str,
    meter_id: str,
    *,
    start_time: int | None = None,
    end_time: int | None = None,
) -> UsageEvent:
    """The start or the end of use, at a time that this library's own clock said.

    A clock is believed, even in 1970: its error shows in the event, a refusal would lose it.
    Raises what `usage_event` raises for the ids.
    """
    stream = _id_texts(tenant_id, device_id, meter_id)
    payload = _payload(_ids(*stream), None, start_time, end_time, {})
    return UsageEvent(*stream, None, start_time, end_time, None, {}, None, payload)


_REQUIRED = ("tenant_id", "device_id", "meter_id")
_ARGUMENTS = UsageEvent._fields[:-1]  # all but the payload, which is made here
_ARGUMENT_SET = frozenset(_ARGUMENTS)


def usage_event_from(arguments: Mapping[str, object]) -> UsageEvent:
    """The event that a mapping of argument names describes: a line of a file, a row of a program.

    Raises what `usage_event` raises; a name too many or too few is named.
    """
    if type(arguments) is dict:
        try:
            return usage_event(**arguments)
        except TypeError:
            pass  # of a name or of a value: below, both are looked at
    return usage_event(**_known(arguments))


def _known(arguments: object) -> dict[str, Any]:  # Any: usage_event looks at each of them
    if not isinstance(arguments, Mapping):
        raise InvalidUsageType(
            f"the event is {shown(arguments)}: it must be a mapping (in JSON: an object) of"
            f" {', '.join(_ARGUMENTS)}"
        )
    known = dict(arguments)
    if not known.keys() <= _ARGUMENT_SET:
        unknown = [shown(name) for name in known if name not in _ARGUMENT_SET]
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise InvalidUsage(
            f"there is no argument {', '.join(unknown[:3])}{more}: the arguments are"
            f" {', '.join(_ARGUMENTS)}"
        )
    missing = [name for name in _REQUIRED if name not in known]
    if missing:
        raise InvalidUsage(f"{' and '.join(missing)} must be given")
    return known


def _payload(
    ids: str,
    total_usage: int | None,
    start_time: int | None,
    end_time: int | None,
    metadata: dict[str, str],
) -> str:
    """What the caller said, as compact JSON. An event without `total_usage` is an `ai_event`.

    The names in `metadata` are checked here.
    """
    usage = '"ai_event":true' if total_usage is None else f'"total_usage":{total_usage}'
    if start_time is not None:
        usage = f'{usage},"start_time":{start_time}'
    if end_time is not None:
        usage = f'{usage},"end_time":{end_time}'
    context = (
        ",".join([f"{_quoted_name(key)}:{_quoted(value)}" for key, value in metadata.items()])
        if metadata
        else ""
    )
    return f'{{{ids},{usage},"metadata":{{{context}}}}}'


def _check_size(payload: str) -> None:
    # No character takes more than 4 bytes, so most events need not be counted.
    if len(payload) > MOST_EVENT_BYTES // 4:
        size = len(payload.encode())
        if size > MOST_EVENT_BYTES:
            raise InvalidUsage(
                f"the event is {size} bytes of JSON: it must not be more than {MOST_EVENT_BYTES};"
                " shorten its metadata"
            )


def _id_texts(tenant_id: object, device_id: object, meter_id: object) -> tuple[str, str, str]:
    return (
        checked_text("tenant_id", tenant_id),
        checked_text("device_id", device_id),
        checked_text("meter_id", meter_id),
    )


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _ids(tenant_id: str, device_id: str, meter_id: str) -> str:
    """These ids as members of the payload, once they are checked."""
    tenant = _quoted(checked_id("tenant_id", tenant_id))
    device = _quoted(checked_id("device_id", device_id))
    meter = _quoted(checked_id("meter_id", meter_id))
    return f'"meter_id":{meter},"tenant_id":{tenant},"device_id":{device}'


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _quoted_name(key: str) -> str:
    """A key of metadata as JSON, once it is checked."""
    return _quoted(checked_name(key))
