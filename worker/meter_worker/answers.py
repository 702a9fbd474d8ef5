"""What an answer consists of, before anybody judges it: its shape, its entries, its words.

Total: any bytes have a shape. What a status or a code means is said in the verdict table only.
"""

from __future__ import annotations

import email.utils
import functools
import json
from datetime import timezone
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Answer",
    "Dialect",
    "Entry",
    "Shape",
    "account_answer",
    "delivery_answer",
    "retry_after_seconds",
    "shown",
]

_LONGEST_DETAIL = 500
# An honest error says a few things at its top; whoever says more is not read to the end.
_MOST_WORDS = 100
# Members and elements of an honest answer: a few an entry, or the accounts of a list. Each
# takes a hundred bytes and more once it is parsed, so four megabytes of them are not.
_MOST_PARTS = 10_000
_MOST_PARTS_A_RECORD = 100
_MOST_PARTS_OF_ACCOUNTS = 100_000
# What tells most comes first; the entries are read by themselves.
_TELLING = ("error_code", "error", "code", "message", "offsets")
_MOST_DIGITS = 1000
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_TOO_MANY_DIGITS = b"0" * _MOST_DIGITS
_OFFSETS_END = 2**63
_LONGEST_NAME = 200
# Some thirty years: infinity would be no number of seconds to count with.
_LONGEST_WAIT_SECONDS = 999_999_999.0
# Ours are a few dozen characters; whatever is longer is no id of a customer.
_LONGEST_CUSTOMER_ID = 255


class Dialect(str, Enum):
    """Whose answers these are, told by the shape of an entry that failed."""

    CONFLUENT = "confluent"
    KARAPACE = "karapace"
    STRIMZI = "strimzi"
    REDPANDA = "redpanda"


class Shape(Enum):
    """What the body of an answer is."""

    NOTHING = "no body"
    PAGE = "HTML or XML"
    TEXT = "text that is no JSON"
    BROKEN = "neither text nor whole JSON"
    JSON = "JSON without `offsets`"
    NO_ENTRIES = "`offsets` without entries"
    GARBLED = "`offsets` with an entry that is none"
    SOUND = "one entry a record, none with an error"
    FAILED = "one entry a record, some with an error"
    PARTITIONS = "fewer entries than records, no error, partitions distinct"
    FAILED_PARTITIONS = "Redpanda's, some with an error, partitions distinct"
    OTHER_NUMBER = "more or fewer entries than records"
    ACCOUNT = "an object, or a list that begins with one, whose `id` is text or a number"
    EMPTY_LIST = "an empty list"
    OBJECT = "another JSON object"


class Entry(NamedTuple):
    """What a proxy says of one record, or of one partition."""

    failed: bool
    partition: int | None = None
    code: int | None = None
    text: str = ""
    """The words of the error, fit for a log; `null` where it has none."""
    dialect: Dialect | None = None
    """Whose entry it is, where it failed."""


class Answer(NamedTuple):
    """A whole answer to a request of `sent` records."""

    status: int
    sent: int
    body: bytes
    shape: Shape
    entries: tuple[Entry, ...] = ()
    words: tuple[str, ...] = ()
    """What it says at its top, as `member: value`, in lower case, blanks for `_` and `-`."""
    message: str | None = None
    customer_id: str | None = None
    """JSON text of the account's id."""

    @property
    def detail(self) -> str:
        """Status and message, fit for a log."""
        return f"HTTP {self.status}: {shown(self.message or self.body)}"


def delivery_answer(status: int, body: bytes, *, sent: int, pinned: Dialect | None) -> Answer:
    """Take apart the answer to a request of `sent` records; `pinned` names the proxy."""
    parsed = _parsed(body, _MOST_PARTS + sent * _MOST_PARTS_A_RECORD)
    offsets = parsed.get("offsets") if isinstance(parsed, dict) else None
    if not isinstance(offsets, list):
        return Answer(
            status, sent, body, _shape(body, parsed), (), _words(parsed), _message(parsed)
        )
    entries = tuple(entry for value in offsets if (entry := _entry(value, pinned)) is not None)
    if len(entries) < len(offsets):
        shape, entries = Shape.GARBLED, ()
    elif not entries:
        shape = Shape.NO_ENTRIES
    elif len(entries) == sent:
        shape = _shape_of_all(entries)
    elif len(entries) < sent and _one_a_partition(entries):
        shape = Shape.PARTITIONS
    else:
        shape = Shape.OTHER_NUMBER
    return Answer(status, sent, body, shape, entries, _words(parsed), _message(parsed))


def account_answer(status: int, body: bytes) -> Answer:
    """Take apart an answer of the accounts API: of a list, the first entry counts."""
    parsed = _parsed(body, _MOST_PARTS_OF_ACCOUNTS)
    account = parsed[0] if isinstance(parsed, list) and parsed else parsed
    customer_id = account.get("id") if isinstance(account, dict) else None
    if _is_customer_id(customer_id):
        text = json.dumps(customer_id, ensure_ascii=False)
        return Answer(status, 1, body, Shape.ACCOUNT, (), (), _message(parsed), text)
    shape = _shape(body, parsed)
    if parsed == []:
        shape = Shape.EMPTY_LIST
    elif isinstance(parsed, dict):
        shape = Shape.OBJECT
    return Answer(status, 1, body, shape, (), (), _message(parsed))


def retry_after_seconds(headers: Mapping[str, str], now: int) -> float | None:
    """Return the seconds that `Retry-After` asks for (RFC 9110, 10.2.3), or None.

    A date is meant by the clock of whoever names it, which the answer's own `Date` shows: ours
    may be years off. Where there is none, `now` (milliseconds since the epoch) must do.
    """
    value = _header(headers, "retry-after")
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_WAIT_SECONDS)
    until = _seconds_of(value)
    if until is None:
        return None
    answered_at = _seconds_of(_header(headers, "date"))
    return max(0.0, until - (now / 1000 if answered_at is None else answered_at))


def _header(headers: Mapping[str, str], name: str) -> str:
    return next((v for k, v in headers.items() if k.lower() == name), "").strip()


def _seconds_of(date: str) -> float | None:
    """Return the seconds since the epoch of a date as HTTP writes it, or None."""
    try:
        instant = email.utils.parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=timezone.utc)
    return instant.timestamp()


def shown(value: object) -> str:
    """Return a value from outside in words fit for a log: one line, printable, not long."""
    if isinstance(value, bytes):
        value = value[: 2 * _LONGEST_DETAIL].decode("utf-8", "replace")
    text = value if isinstance(value, str) else json.dumps(value)
    text = text[: 2 * _LONGEST_DETAIL]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "…"


def _parsed(body: bytes, most_parts: int) -> Any:  # Any: whatever JSON holds
    """Return what the body says in JSON, or None; NaN, and numbers without end, are no JSON."""
    if sum(map(body.count, (b",", b"[", b"{"))) > most_parts:
        return None
    # To ask each number how long it is takes longer than all else. A zero byte: UTF-16.
    is_odd = _TOO_MANY_DIGITS in body.translate(_TO_ZEROS) or b"\0" in body
    try:
        return json.loads(body, parse_int=_integer if is_odd else None, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _integer(digits: str) -> int:
    # Python before 3.10.7 would take minutes over a number of some megabytes.
    if len(digits) > _MOST_DIGITS:
        raise ValueError
    return int(digits)


def _no_number(name: str) -> None:
    raise ValueError(name)


def _shape(body: bytes, parsed: object) -> Shape:
    if parsed is not None:
        return Shape.JSON
    text = body.strip()
    if not text:
        return Shape.NOTHING
    if text.startswith(b"<"):
        return Shape.PAGE
    return Shape.TEXT if _is_readable(text) else Shape.BROKEN


def _is_readable(text: bytes) -> bool:
    """Return whether it is text for people: JSON that was cut short is none."""
    try:
        words = text.decode().split()
    except UnicodeDecodeError:
        return False
    return not text.startswith((b"{", b"[", b'"')) and "".join(words).isprintable()


def _entry(value: object, pinned: Dialect | None) -> Entry | None:
    """Return what is said of one record; None where it is no entry of any proxy."""
    if not isinstance(value, dict):
        return None
    # Not isinstance: to Python, true is an int.
    code = value.get("error_code")
    if code is not None and type(code) is not int:
        return None
    text, message = value.get("error"), value.get("message")
    if text is None or text == "":
        text = None if message == "" else message
    partition = value.get("partition")
    if type(partition) is not int or not 0 <= partition < _OFFSETS_END:
        partition = None
    # 0 is NONE among Kafka's own numbers: no error, unless there are words for one.
    if text is None and (code is None or code == 0):
        offset = value.get("offset")
        if type(offset) is not int or not -1 <= offset < _OFFSETS_END:
            return None
        return _sound_entry(partition)
    dialect = pinned or _dialect(value, code)
    return Entry(True, partition, code, shown(text), dialect)


@functools.lru_cache(maxsize=1024)
def _sound_entry(partition: int | None) -> Entry:
    return Entry(failed=False, partition=partition)


def _dialect(entry: dict[str, Any], code: int | None) -> Dialect:
    if entry.get("message") is not None:
        return Dialect.STRIMZI
    if entry.get("offset") == -1:
        return Dialect.REDPANDA
    if "offset" in entry or "partition" in entry or (code is not None and code >= 10_000):
        return Dialect.CONFLUENT
    return Dialect.KARAPACE


def _shape_of_all(entries: tuple[Entry, ...]) -> Shape:
    failed = [entry for entry in entries if entry.failed]
    if not failed:
        return Shape.SOUND
    # One entry a partition, and by chance as many as records: whose is which, nobody knows.
    partitions = {entry.partition for entry in entries} - {None}
    of_redpanda = any(entry.dialect is Dialect.REDPANDA for entry in failed)
    if of_redpanda and len(failed) < len(entries) == len(partitions):
        return Shape.FAILED_PARTITIONS
    return Shape.FAILED


def _one_a_partition(entries: tuple[Entry, ...]) -> bool:
    partitions = {entry.partition for entry in entries}
    return (
        not any(entry.failed for entry in entries)
        and None not in partitions
        and len(partitions) == len(entries)
    )


def _message(parsed: object) -> str | None:
    message = parsed.get("message") if isinstance(parsed, dict) else None
    return shown(message) if message else None


def _words(parsed: object) -> tuple[str, ...]:
    if not isinstance(parsed, dict):
        return ()
    others = (item for item in parsed.items() if item[0] not in _TELLING)
    top = [(name, parsed[name]) for name in _TELLING if name in parsed and name != "offsets"]
    return tuple(islice(_leaves([*top, *islice(others, _MOST_WORDS)]), _MOST_WORDS))


def _leaves(members: list[tuple[str, Any]]) -> Iterator[str]:
    """Yield what the members say, one by one; nothing is said by null, false, 0 and ""."""
    waiting = members[::-1]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            held = [
                (f"{name}.{key}"[:_LONGEST_NAME], part)
                for key, part in islice(value.items(), _MOST_WORDS)
            ]
            waiting.extend(reversed(held))
        elif isinstance(value, list):
            waiting.extend((name, part) for part in reversed(value[:_MOST_WORDS]))
        elif value:
            yield (
                f"{name[:_LONGEST_NAME]}: {shown(value)}".replace("_", " ")
                .replace("-", " ")
                .lower()
            )


def _is_customer_id(value: object) -> bool:
    if isinstance(value, str):
        # A lone surrogate can be escaped in JSON, but neither stored nor sent as UTF-8.
        return 0 < len(value) <= _LONGEST_CUSTOMER_ID and not any(
            "\ud800" <= character <= "\udfff" for character in value
        )
    return isinstance(value, int) and not isinstance(value, bool) and 0 < abs(value) < 2**64
