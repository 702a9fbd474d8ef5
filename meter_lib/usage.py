"""A usage event: what the caller said, checked and frozen.

Whoever holds a `UsageEvent` made here may store and send it without another look. It knows no
outbox, no clock and no network.

Annotations are not postponed here, and patterns are compiled on first use: together they would be
two of the three milliseconds that this module takes to import.
"""

import json
import json.encoder
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

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

MOST_ID_CHARACTERS = 255
MOST_METADATA_ENTRIES = 50
MOST_METADATA_CHARACTERS = 8_192
MOST_EVENT_BYTES = 64 * 1024
MOST_USAGE = 2**63 - 1  # the largest integer of SQLite, of Java and of most backends

# Milliseconds of 13 digits are September 2001 to November 2286. Each other unit of time has another
# number of digits there, so that a wrong unit is never taken for a time.
FIRST_TIME = 10**12
LAST_TIME = 10**13 - 1

_CONTROL = r"[\x00-\x1f\x7f-\x9f]"
_LONE_SURROGATE = r"[\ud800-\udfff]"
# The function behind json.dumps(text, ensure_ascii=False), without its 2 µs of preparations.
_quoted = json.encoder.encode_basestring


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
        for time in (self.timestamp, self.end_time, self.start_time):
            if time is not None:
                return time
        return now

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
    tenant_id = _id("tenant_id", tenant_id)
    device_id = _id("device_id", device_id)
    meter_id = _id("meter_id", meter_id)
    if total_usage is not None:
        total_usage = _usage(total_usage)
    elif start_time is None and end_time is None:
        raise InvalidUsage("nothing was used: give total_usage, start_time or end_time")
    if start_time is not None:
        start_time = _time("start_time", start_time)
    if end_time is not None:
        end_time = _time("end_time", end_time)
        if start_time is not None and end_time < start_time:
            raise InvalidUsage(
                f"end_time is {end_time}: it must not be before start_time, {start_time}"
            )
    if timestamp is not None:
        timestamp = _time("timestamp", timestamp)
    sent_metadata = _metadata(metadata) if metadata is not None else {}
    if idempotency_key is not None:
        idempotency_key = _key(idempotency_key)
    payload = _payload(
        tenant_id, device_id, meter_id, total_usage, start_time, end_time, sent_metadata
    )
    # No character takes more than 4 bytes, so most events need not be counted.
    if len(payload) > MOST_EVENT_BYTES // 4:
        size = len(payload.encode())
        if size > MOST_EVENT_BYTES:
            raise InvalidUsage(
                f"the event is {size} bytes of JSON: it must not be more than {MOST_EVENT_BYTES};"
                " shorten its metadata"
            )
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
    ids = _id("tenant_id", tenant_id), _id("device_id", device_id), _id("meter_id", meter_id)
    payload = _payload(*ids, None, start_time, end_time, {})
    return UsageEvent(*ids, None, start_time, end_time, None, {}, None, payload)


_REQUIRED = ("tenant_id", "device_id", "meter_id")
_ARGUMENTS = UsageEvent._fields[:-1]  # all but the payload, which is made here
_ARGUMENT_SET = frozenset(_ARGUMENTS)


def usage_event_from(arguments: Mapping[str, object]) -> UsageEvent:
    """The event that a mapping of argument names describes: a line of a file, a row of a program.

    Raises what `usage_event` raises; a name too many or too few is named.
    """
    return usage_event(**_known(arguments))


def shown(value: object, most: int = 60) -> str:
    """A foreign value as a message may hold it: short, ASCII only, nothing of it taking effect."""
    if isinstance(value, str):
        text = ascii(str.__str__(value)[: most + 1])
    elif type(value) is bytes:
        text = ascii(value[: most + 1])
    elif value is None or isinstance(value, bool):
        text = str(value)
    elif isinstance(value, float):
        text = float.__repr__(value)
    elif isinstance(value, int):
        # Python refuses to write out an integer of thousands of digits.
        bits = value.bit_length()
        text = int.__repr__(value) if bits <= 128 else f"an integer of {bits} bits"
    else:
        # Its repr() is foreign code, and may be of any length or fail.
        text = f"a value of type {ascii(type(value).__name__)[1:-1]}"
    return text if len(text) <= most else text[: most - 3] + "..."


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
    tenant_id: str,
    device_id: str,
    meter_id: str,
    total_usage: int | None,
    start_time: int | None,
    end_time: int | None,
    metadata: dict[str, str],
) -> str:
    """What the caller said, as compact JSON. An event without `total_usage` is an `ai_event`."""
    usage = '"ai_event":true' if total_usage is None else f'"total_usage":{total_usage}'
    if start_time is not None:
        usage = f'{usage},"start_time":{start_time}'
    if end_time is not None:
        usage = f'{usage},"end_time":{end_time}'
    context = (
        ",".join([f"{_quoted(key)}:{_quoted(value)}" for key, value in metadata.items()])
        if metadata
        else ""
    )
    return (
        f'{{"meter_id":{_quoted(meter_id)},"tenant_id":{_quoted(tenant_id)},'
        f'"device_id":{_quoted(device_id)},{usage},"metadata":{{{context}}}}}'
    )


def _text(name: str, value: object) -> str:
    """The value without its subclass of `str`, whose methods are foreign code."""
    if not isinstance(value, str):
        raise InvalidUsageType(f"{name} is {shown(value)}: it must be a str")
    return str.__str__(value)


def _id(name: str, value: object) -> str:
    # Whatever is printable holds no control character, no surrogate and no blank but the space.
    if (
        type(value) is str
        and value.isprintable()
        and 0 < len(value) <= MOST_ID_CHARACTERS
        and value[0] != " " != value[-1]
    ):
        return value
    text = _text(name, value)
    _check_length(name, text)
    if re.search(_CONTROL, text):
        raise InvalidUsage(f"{name} is {shown(text)}: it must not hold control characters")
    if text != text.strip():
        raise InvalidUsage(f"{name} is {shown(text)}: it must not begin or end with a blank")
    _check_encodable(name, text)
    return text


def _key(value: object) -> str:
    text = _text("idempotency_key", value)
    _check_length("idempotency_key", text)
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidUsage(
            f"idempotency_key is {shown(text)}: it must be printable ASCII without blanks"
        )
    return text


def _check_length(name: str, text: str) -> None:
    if not 0 < len(text) <= MOST_ID_CHARACTERS:
        raise InvalidUsage(
            f"{name} is {shown(text)}: it must be 1 to {MOST_ID_CHARACTERS} characters,"
            f" not {len(text)}"
        )


def _check_encodable(name: str, text: str) -> None:
    if not text.isascii() and re.search(_LONE_SURROGATE, text):
        raise InvalidUsage(
            f"{name} is {shown(text)}: it must not hold lone surrogates, which no UTF-8 can carry"
        )


def _usage(value: object) -> int:
    if type(value) is int and 0 <= value <= MOST_USAGE:
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidUsageType(
            f"total_usage is {shown(value)}: it must be an int, the number of the meter's units;"
            " where parts of a unit count, choose a smaller unit"
        )
    if not 0 <= value <= MOST_USAGE:
        raise InvalidUsage(f"total_usage is {shown(value)}: it must be from 0 to {MOST_USAGE}")
    return int.__int__(value)


def _time(name: str, value: object) -> int:
    if type(value) is int and FIRST_TIME <= value <= LAST_TIME:
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidUsageType(
            f"{name} is {shown(value)}: it must be an int, milliseconds since 1970 (UTC), such as"
            " int(time.time() * 1000)"
        )
    if not FIRST_TIME <= value <= LAST_TIME:
        raise InvalidUsage(
            f"{name} is {shown(value)}: it must be milliseconds since 1970 (UTC), from {FIRST_TIME}"
            f" to {LAST_TIME}{_mistaken_unit(value)}"
        )
    return int.__int__(value)


def _mistaken_unit(time: int) -> str:
    """What the number must be, if it means the same years in another unit."""
    for first_time, unit, remedy in (
        (10**9, "seconds", "multiply by 1000"),
        (10**15, "microseconds", "divide by 1000"),
        (10**18, "nanoseconds", "divide by 1000000"),
    ):
        if first_time <= time < first_time * 10:
            return f"; these look like {unit}: {remedy}"
    return ""


def _metadata(metadata: object) -> dict[str, str]:
    """A copy with each value as it is sent: what the caller changes later changes nothing."""
    if not isinstance(metadata, Mapping):
        raise InvalidUsageType(
            f"metadata is {shown(metadata)}: it must be a mapping of names to values"
        )
    # The copy comes first: another thread may change the original meanwhile.
    entries: dict[object, object] = dict(metadata)
    if len(entries) > MOST_METADATA_ENTRIES:
        raise InvalidUsage(
            f"metadata has {len(entries)} entries: it must not have more than"
            f" {MOST_METADATA_ENTRIES}"
        )
    sent: dict[str, str] = {}
    for key, value in entries.items():
        name = _text("a key of metadata", key)
        _check_length("a key of metadata", name)
        _check_encodable("a key of metadata", name)
        sent[name] = _metadata_text(name, value)
    return sent


def _metadata_text(key: str, value: object) -> str:
    if isinstance(value, str):
        text = str.__str__(value)
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        try:
            text = int.__repr__(value)
        except ValueError:  # more digits than Python writes out
            raise _too_long(key, value) from None
    elif isinstance(value, float):
        text = float.__repr__(value)  # as JSON writes it
        if text in ("nan", "inf", "-inf"):
            raise InvalidUsage(f"metadata[{shown(key)}] is {text}: a float must be finite")
    else:
        raise InvalidUsageType(
            f"metadata[{shown(key)}] is {shown(value)}: it must be a str, a bool, an int or a float"
        )
    if len(text) > MOST_METADATA_CHARACTERS:
        raise _too_long(key, value)
    if not text.isascii():  # the name of the value is not made for nothing
        _check_encodable(f"metadata[{shown(key)}]", text)
    return text


def _too_long(key: str, value: object) -> InvalidUsage:
    return InvalidUsage(
        f"metadata[{shown(key)}] is {shown(value)}: it must not be longer than"
        f" {MOST_METADATA_CHARACTERS} characters"
    )
