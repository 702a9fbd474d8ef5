"""The rules for each argument of a usage event, and what an error says of it.

Patterns are compiled on first use, which takes a millisecond.
"""

import re
from collections.abc import Mapping

from meter_lib.errors import InvalidUsage, InvalidUsageType

__all__ = [
    "FIRST_TIME",
    "LAST_TIME",
    "MOST_USAGE",
    "checked_id",
    "checked_key",
    "checked_metadata",
    "checked_name",
    "checked_text",
    "checked_time",
    "checked_usage",
    "shown",
]

MOST_ID_CHARACTERS = 255
MOST_METADATA_ENTRIES = 50
MOST_METADATA_CHARACTERS = 8_192
MOST_USAGE = 2**63 - 1  # the largest integer of SQLite, of Java and of most backends

# Milliseconds of 13 digits are September 2001 to November 2286. Each other unit of time has another
# number of digits there, so that a wrong unit is never taken for a time.
FIRST_TIME = 10**12
LAST_TIME = 10**13 - 1

_CONTROL = r"[\x00-\x1f\x7f-\x9f]"
_LONE_SURROGATE = r"[\ud800-\udfff]"


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


def checked_text(name: str, value: object) -> str:
    """The value without its subclass of `str`, whose methods are foreign code."""
    if not isinstance(value, str):
        raise InvalidUsageType(f"{name} is {shown(value)}: it must be a str")
    return str.__str__(value)


def checked_id(name: str, text: str) -> str:
    """The id of a tenant, a device or a meter."""
    _check_length(name, text)
    # Whatever is printable holds no control character, no surrogate and no blank but the space.
    if text.isprintable() and text[0] != " " != text[-1]:
        return text
    if re.search(_CONTROL, text):
        raise InvalidUsage(f"{name} is {shown(text)}: it must not hold control characters")
    if text != text.strip():
        raise InvalidUsage(f"{name} is {shown(text)}: it must not begin or end with a blank")
    _check_encodable(name, text)
    return text


def checked_key(value: object) -> str:
    """The caller's own idempotency key."""
    text = checked_text("idempotency_key", value)
    _check_length("idempotency_key", text)
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidUsage(
            f"idempotency_key is {shown(text)}: it must be printable ASCII without blanks"
        )
    return text


def checked_name(key: str) -> str:
    """A key of metadata."""
    _check_length("a key of metadata", key)
    _check_encodable("a key of metadata", key)
    return key


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


def checked_usage(value: object) -> int:
    """A number of the meter's units."""
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


def checked_time(name: str, value: object) -> int:
    """An instant, milliseconds since the Unix epoch."""
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


def checked_metadata(metadata: object) -> dict[str, str]:
    """A copy with each value as it is sent: what the caller changes later changes nothing."""
    if type(metadata) is not dict and not isinstance(metadata, Mapping):
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
        name = key if type(key) is str else checked_text("a key of metadata", key)
        if type(value) is str and len(value) <= MOST_METADATA_CHARACTERS and value.isascii():
            sent[name] = value
        else:
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
