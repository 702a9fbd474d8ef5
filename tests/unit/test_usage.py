from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import json
import subprocess
import sys
import types
from typing import Any

import pytest

from meter_lib.errors import InvalidUsage, InvalidUsageType, MeterError
from meter_lib.usage import UsageEvent, shown, usage_event, usage_event_from

NOON = 1_759_791_552_000

WHO = {"tenant_id": "tenant-1", "device_id": "device-1", "meter_id": "page.processed.basic"}


def event(**changes: Any) -> UsageEvent:
    """A valid event, but for the changes."""
    return usage_event_from({**WHO, "total_usage": 24, **changes})


class Shouting(str):
    """A str whose methods are not to be trusted."""

    __slots__ = ()

    def __str__(self) -> str:
        return "shouted"

    def __repr__(self) -> str:
        return "\x1b[31mshouted"

    def __getitem__(self, key: object) -> str:
        return "\x1b[31mshouted"


class Unit(enum.IntEnum):
    PAGES = 24


class Unprintable:
    def __repr__(self) -> str:
        raise AssertionError("foreign code must not run")


# ---- what is frozen


@pytest.mark.parametrize(
    ("usage", "payload"),
    [
        (
            {"total_usage": 24},
            '{"meter_id":"m","tenant_id":"t","device_id":"d","total_usage":24,"metadata":{}}',
        ),
        (
            {"start_time": NOON},
            (
                '{"meter_id":"m","tenant_id":"t","device_id":"d","ai_event":true,'
                '"start_time":1759791552000,"metadata":{}}'
            ),
        ),
        (
            {"end_time": NOON, "metadata": {"b": 1, "a": True}},
            (
                '{"meter_id":"m","tenant_id":"t","device_id":"d","ai_event":true,'
                '"end_time":1759791552000,"metadata":{"b":"1","a":"true"}}'
            ),
        ),
        (
            {"start_time": NOON, "end_time": NOON + 1},
            (
                '{"meter_id":"m","tenant_id":"t","device_id":"d","ai_event":true,'
                '"start_time":1759791552000,"end_time":1759791552001,"metadata":{}}'
            ),
        ),
        (
            {
                "total_usage": 0,
                "start_time": NOON,
                "end_time": NOON,
                "timestamp": NOON,
                "idempotency_key": "k",
            },
            (
                '{"meter_id":"m","tenant_id":"t","device_id":"d","total_usage":0,'
                '"start_time":1759791552000,"end_time":1759791552000,"metadata":{}}'
            ),
        ),
    ],
)
def test_the_payload_is_what_the_caller_said(usage: dict[str, Any], payload: str) -> None:
    """The payload is compact JSON of what was said, in a fixed order of members."""
    assert payload == usage_event("t", "d", "m", **usage).payload


def test_the_payload_keeps_every_character_that_json_can_carry() -> None:
    """Quotes, backslashes and other scripts arrive as they were said."""
    said = event(
        tenant_id='Bäckerei "Süß" \\ 東京/?#%@+', metadata={'say "hi"': "a\nb\\c\x00\x7f\u2028é𝄞"}
    )
    assert said.payload == (
        '{"meter_id":"page.processed.basic","tenant_id":"Bäckerei \\"Süß\\" \\\\ 東京/?#%@+",'
        '"device_id":"device-1","total_usage":24,'
        '"metadata":{"say \\"hi\\"":"a\\nb\\\\c\\u0000\x7f\u2028é𝄞"}}'
    )
    assert json.loads(said.payload) == {
        "meter_id": "page.processed.basic",
        "tenant_id": 'Bäckerei "Süß" \\ 東京/?#%@+',
        "device_id": "device-1",
        "total_usage": 24,
        "metadata": {'say "hi"': "a\nb\\c\x00\x7f\u2028é𝄞"},
    }


def test_an_event_is_all_that_was_said() -> None:
    """Every argument is a member of the event, under its own name."""
    said = usage_event(
        "t",
        "d",
        "m",
        3,
        NOON,
        NOON + 1,
        timestamp=NOON + 2,
        metadata={"rule_id": "r-1"},
        idempotency_key="k-1",
    )
    assert said == UsageEvent(
        tenant_id="t",
        device_id="d",
        meter_id="m",
        total_usage=3,
        start_time=NOON,
        end_time=NOON + 1,
        timestamp=NOON + 2,
        metadata={"rule_id": "r-1"},
        idempotency_key="k-1",
        payload='{"meter_id":"m","tenant_id":"t","device_id":"d","total_usage":3,'
        '"start_time":1759791552000,"end_time":1759791552001,"metadata":{"rule_id":"r-1"}}',
    )


def test_later_changes_by_the_caller_change_nothing() -> None:
    """The event holds a copy of the metadata."""
    metadata = {"rule_id": "r-1"}
    said = event(metadata=metadata)
    metadata["rule_id"] = "r-2"
    assert said.metadata == {"rule_id": "r-1"}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("", ""),
        ("text", "text"),
        (Shouting("quiet"), "quiet"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (Unit.PAGES, "24"),
        (10**400, "1" + "0" * 400),
        (0.1, "0.1"),
        (1.0, "1.0"),
        (1e22, "1e+22"),
        (-0.0, "-0.0"),
        ("x" * 8192, "x" * 8192),
    ],
    ids=shown,
)
def test_metadata_is_sent_as_text(value: Any, sent: str) -> None:
    """Booleans and numbers are sent as the text that JSON has for them."""
    said = event(metadata={"key": value})
    assert said.metadata == {"key": sent}
    assert type(said.metadata["key"]) is str
    assert json.loads(said.payload)["metadata"] == {"key": sent}


def test_any_mapping_will_do() -> None:
    """Arguments and metadata may be any mapping, not only a dict."""
    metadata = types.MappingProxyType({"a": "1"})
    said = usage_event_from(collections.ChainMap({"metadata": metadata, "total_usage": 1}, WHO))
    assert said == usage_event(**WHO, total_usage=1, metadata={"a": "1"})


def test_subclasses_of_str_and_int_leave_only_their_value() -> None:
    """A value is stored as the plain str or int it is, whatever methods its class has."""
    said = event(
        tenant_id=Shouting("tenant-1"), total_usage=Unit.PAGES, idempotency_key=Shouting("k")
    )
    assert said == event(idempotency_key="k")
    assert {type(said.tenant_id), type(said.idempotency_key)} == {str}
    assert type(said.total_usage) is int


# ---- when it happened


@pytest.mark.parametrize(
    ("times", "event_time"),
    [
        ({"timestamp": NOON + 3, "start_time": NOON + 1, "end_time": NOON + 2}, NOON + 3),
        ({"start_time": NOON + 1, "end_time": NOON + 2}, NOON + 2),
        ({"start_time": NOON + 1}, NOON + 1),
        ({}, 5),
    ],
)
def test_the_time_of_an_event(times: dict[str, int], event_time: int) -> None:
    """An event happened at its timestamp, else at its end, else at its start, else now."""
    assert event_time == event(**times).event_time(now=5)


# ---- which events are the same


def test_the_fingerprint_stays_the_same_from_release_to_release() -> None:
    """Outboxes keep fingerprints, so these must never change."""
    assert event().fingerprint().hex() == "dcbb89faea725f2cd31673b6ebeb4609"
    assert (
        event(total_usage=None, start_time=NOON, end_time=NOON + 1, metadata={"b": "é", "a": 1})
        .fingerprint()
        .hex()
        == "830cbe157774a0efd796aa1d60dba4d8"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"timestamp": NOON}, {"timestamp": NOON + 1}),
        ({"timestamp": NOON}, {}),
        ({"idempotency_key": "k"}, {}),
        ({"metadata": {}}, {}),
        ({"metadata": {"a": "1", "b": "2"}}, {"metadata": {"b": "2", "a": "1"}}),
        ({"metadata": {"a": 1, "b": True}}, {"metadata": {"a": "1", "b": "true"}}),
    ],
)
def test_events_of_the_same_content_have_the_same_fingerprint(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Timestamp, key, and the order of metadata make no other event."""
    assert event(**one).fingerprint() == event(**other).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"tenant_id": "tenant-2"},
        {"device_id": "device-2"},
        {"meter_id": "page.processed.advanced"},
        {"total_usage": 25},
        {"start_time": NOON},
        {"end_time": NOON},
        {"total_usage": None, "start_time": NOON},
        {"metadata": {"a": "1"}},
        {"metadata": {"a": "1", "b": "2"}},
        {"metadata": {"a": "2", "b": "1"}},
        {"tenant_id": 'tenant-1","x":"'},
        {"tenant_id": "device-1", "device_id": "tenant-1"},
    ],
)
def test_events_of_other_content_have_another_fingerprint(change: dict[str, Any]) -> None:
    """Whatever else differs makes another event."""
    assert event(**change).fingerprint() != event().fingerprint()


# ---- what is accepted, up to the last value


@pytest.mark.parametrize("argument", ["tenant_id", "device_id", "meter_id"])
@pytest.mark.parametrize(
    "value",
    [
        "x",
        "x" * 255,
        "ü" * 255,
        "a b",
        "/?#%@+&=:;,\"'\\<>{}|",
        "a\u00a0b",
        "a\u202eb",
        "\u200bx",
        "\ufeffx",
        "e\u0301",
        "𝄞",
        "\U0010ffff",
    ],
)
def test_an_id_may_be(argument: str, value: str) -> None:
    """An id is 1 to 255 characters, none a control, and neither the first nor the last a blank."""
    assert getattr(event(**{argument: value}), argument) == value


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("total_usage", 0),
        ("total_usage", 2**63 - 1),
        ("start_time", 10**12),
        ("start_time", 10**13 - 1),
        ("end_time", 10**12),
        ("end_time", 10**13 - 1),
        ("timestamp", 10**12),
        ("timestamp", 10**13 - 1),
        ("idempotency_key", "!"),
        ("idempotency_key", "~" * 255),
        ("metadata", {"k" * 255: ""}),
        ("metadata", {"\n": ""}),
        ("metadata", {str(n): "" for n in range(50)}),
    ],
)
def test_the_last_value_on_the_good_side(argument: str, value: object) -> None:
    """Limits are inclusive."""
    assert getattr(event(**{argument: value}), argument) == value


def test_an_event_may_be_64_kib_of_json() -> None:
    """The limit of the whole event is inclusive, and counts bytes of UTF-8."""
    spare = 64 * 1024 - len(event(metadata={str(n): "" for n in range(10, 19)}).payload)
    values = ["é" * 4096] * 7
    values += ["x" * 8000, "x" * (spare - 7 * 8192 - 8000)]
    metadata = dict(zip(map(str, range(10, 19)), values, strict=True))
    assert len(event(metadata=metadata).payload.encode()) == 64 * 1024
    metadata["10"] += "x"
    with pytest.raises(InvalidUsage, match=r"^the event is 65537 bytes of JSON: it must not be"):
        event(metadata=metadata)


# ---- what is refused, and how

IDS = [
    ("", "{} is '': it must be 1 to 255 characters, not 0"),
    ("x" * 256, "{} is '" + "x" * 56 + "...: it must be 1 to 255 characters, not 256"),
    ("a\x1b[31mb", r"{} is 'a\x1b[31mb': it must not hold control characters"),
    ("a\nb", r"{} is 'a\nb': it must not hold control characters"),
    ("a\r\nx-tenant-id: b", r"{} is 'a\r\nx-tenant-id: b': it must not hold control characters"),
    ("a\x00", r"{} is 'a\x00': it must not hold control characters"),
    ("\x7f", r"{} is '\x7f': it must not hold control characters"),
    ("a\x85b", r"{} is 'a\x85b': it must not hold control characters"),
    ("\u202e\x9b", r"{} is '\u202e\x9b': it must not hold control characters"),
    (" x", "{} is ' x': it must not begin or end with a blank"),
    ("x ", "{} is 'x ': it must not begin or end with a blank"),
    (" ", "{} is ' ': it must not begin or end with a blank"),
    ("x\u00a0", r"{} is 'x\xa0': it must not begin or end with a blank"),
    ("\u3000x\u202e", r"{} is '\u3000x\u202e': it must not begin or end with a blank"),
    ("a\ud800b", r"{} is 'a\ud800b': it must not hold lone surrogates"),
    ("\udfff", r"{} is '\udfff': it must not hold lone surrogates"),
    (Shouting("a\n"), r"{} is 'a\n': it must not hold control characters"),
]

ID_TYPES = [
    (None, "{} is None: it must be a str"),
    (b"tenant-1", "{} is b'tenant-1': it must be a str"),
    (7, "{} is 7: it must be a str"),
    (True, "{} is True: it must be a str"),
    (["tenant-1"], "{} is a value of type list: it must be a str"),
    (Unprintable(), "{} is a value of type Unprintable: it must be a str"),
]

TIMES = [
    (0, "{} is 0: it must be milliseconds since 1970 (UTC), from 1000000000000 to 9999999999999"),
    (-1, "{} is -1: it must be milliseconds"),
    (10**12 - 1, "{} is 999999999999: it must be milliseconds"),
    (10**13, "{} is 10000000000000: it must be milliseconds"),
    (1_759_791_552, "9999999999999; these look like seconds: multiply by 1000"),
    (1_759_791_552_000_000, "9999999999999; these look like microseconds: divide by 1000"),
    (1_759_791_552_000_000_000, "9999999999999; these look like nanoseconds: divide by 1000000"),
    (10**5000, "{} is an integer of 16610 bits: it must be milliseconds"),
    (-(10**5000), "{} is an integer of 16610 bits: it must be milliseconds"),
    (Unit.PAGES, "{} is 24: it must be milliseconds"),
]

TIME_TYPES = [
    (1759791552.5, "{} is 1759791552.5: it must be an int, milliseconds since 1970 (UTC), such as"),
    (float(NOON), "{} is 1759791552000.0: it must be an int"),
    (True, "{} is True: it must be an int"),
    (str(NOON), "{} is '1759791552000': it must be an int"),
    (dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc), "{} is a value of type datetime"),
]

WRONG_VALUES = [
    *((name, *row) for name in ("tenant_id", "device_id", "meter_id") for row in IDS),
    *((name, *row) for name in ("start_time", "end_time", "timestamp") for row in TIMES),
    ("total_usage", -1, "{} is -1: it must be from 0 to 9223372036854775807"),
    ("total_usage", 2**63, "{} is 9223372036854775808: it must be from 0 to 9223372036854775807"),
    ("total_usage", 10**5000, "{} is an integer of 16610 bits: it must be from 0 to"),
    ("idempotency_key", "", "{} is '': it must be 1 to 255 characters, not 0"),
    ("idempotency_key", "k" * 256, "it must be 1 to 255 characters, not 256"),
    ("idempotency_key", "a b", "{} is 'a b': it must be printable ASCII without blanks"),
    ("idempotency_key", "a\tb", r"{} is 'a\tb': it must be printable ASCII without blanks"),
    ("idempotency_key", "\x1b", r"{} is '\x1b': it must be printable ASCII without blanks"),
    ("idempotency_key", "clé", r"{} is 'cl\xe9': it must be printable ASCII without blanks"),
    ("metadata", {"": "x"}, "a key of metadata is '': it must be 1 to 255 characters, not 0"),
    ("metadata", {"k" * 256: "x"}, "it must be 1 to 255 characters, not 256"),
    ("metadata", {"\ud800": "x"}, r"a key of metadata is '\ud800': it must not hold lone"),
    ("metadata", {"k": "\udc00"}, r"metadata['k'] is '\udc00': it must not hold lone surrogates"),
    ("metadata", {"\x1b": float("nan")}, r"metadata['\x1b'] is nan: a float must be finite"),
    ("metadata", {"k": float("inf")}, "metadata['k'] is inf: a float must be finite"),
    ("metadata", {"k": float("-inf")}, "metadata['k'] is -inf: a float must be finite"),
    ("metadata", {"k": "x" * 8193}, "it must not be longer than 8192 characters"),
    ("metadata", {"k": 10**8192}, "metadata['k'] is an integer of 27214 bits: it must not be"),
    ("metadata", {"k": 10**100_000}, "it must not be longer than 8192 characters"),
    ("metadata", {str(n): "" for n in range(51)}, "{} has 51 entries: it must not have more than"),
]

WRONG_TYPES = [
    *((name, *row) for name in ("tenant_id", "device_id", "meter_id") for row in ID_TYPES),
    *((name, *row) for name in ("start_time", "end_time", "timestamp") for row in TIME_TYPES),
    ("total_usage", 1.5, "{} is 1.5: it must be an int"),
    ("total_usage", 1.5, "where parts of a unit count, choose a smaller unit"),
    ("total_usage", 24.0, "{} is 24.0: it must be an int"),
    ("total_usage", decimal.Decimal("1.5"), "{} is a value of type Decimal: it must be an int"),
    ("total_usage", True, "{} is True: it must be an int"),
    ("total_usage", "24\x1b", r"{} is '24\x1b': it must be an int"),
    ("idempotency_key", b"k", "{} is b'k': it must be a str"),
    ("idempotency_key", 7, "{} is 7: it must be a str"),
    ("metadata", [("a", "1")], "{} is a value of type list: it must be a mapping"),
    ("metadata", "a=1\n", r"{} is 'a=1\n': it must be a mapping"),
    ("metadata", {1: "x"}, "a key of metadata is 1: it must be a str"),
    ("metadata", {None: "x"}, "a key of metadata is None: it must be a str"),
    ("metadata", {"k": None}, "metadata['k'] is None: it must be a str, a bool, an int or a float"),
    ("metadata", {"k": b"x"}, "metadata['k'] is b'x': it must be a str"),
    ("metadata", {"k": ["x"]}, "metadata['k'] is a value of type list: it must be a str"),
    ("metadata", {"k": Unprintable()}, "metadata['k'] is a value of type Unprintable: it must be"),
]


@pytest.mark.parametrize(
    ("error", "argument", "value", "words"),
    [
        *((InvalidUsage, *row) for row in WRONG_VALUES),
        *((InvalidUsageType, *row) for row in WRONG_TYPES),
    ],
    ids=shown,
)
def test_a_wrong_argument_is_refused_by_name(
    error: type[MeterError], argument: str, value: object, words: str
) -> None:
    """The error names the argument, shows a harmless piece of the value and says what is right."""
    with pytest.raises(MeterError) as caught:
        event(**{argument: value})
    message = str(caught.value)
    assert type(caught.value) is error
    assert words.format(argument) in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 250
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "builtin"), [(InvalidUsage, ValueError), (InvalidUsageType, TypeError)]
)
def test_errors_are_of_the_kind_that_python_has_for_them(
    error: type[MeterError], builtin: type[Exception]
) -> None:
    """Who catches ValueError or TypeError catches these too."""
    assert issubclass(error, builtin)


def test_usage_without_any_number_is_refused() -> None:
    """At least one of total_usage, start_time and end_time is required."""
    with pytest.raises(InvalidUsage) as caught:
        usage_event("t", "d", "m", timestamp=NOON)
    assert str(caught.value) == "nothing was used: give total_usage, start_time or end_time"


def test_an_end_before_its_start_is_refused() -> None:
    """Use cannot end before it began."""
    with pytest.raises(InvalidUsage) as caught:
        event(start_time=NOON, end_time=NOON - 1)
    assert str(caught.value) == (
        "end_time is 1759791551999: it must not be before start_time, 1759791552000"
    )


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (
            InvalidUsage,
            {**WHO, "total_usage": 1, "usage\x1b": 1},
            (
                r"there is no argument 'usage\x1b': the arguments are tenant_id, device_id,"
                " meter_id, total_usage, start_time, end_time, timestamp, metadata, idempotency_key"
            ),
        ),
        (
            InvalidUsage,
            {**WHO, 1: 1, None: 2, "payload": 3, "now": 4, "key": 5},
            (
                "there is no argument 1, None, 'payload' and 2 more: the arguments are tenant_id,"
                " device_id, meter_id, total_usage, start_time, end_time, timestamp, metadata,"
                " idempotency_key"
            ),
        ),
        (InvalidUsage, {"device_id": "d"}, "tenant_id and meter_id must be given"),
        (InvalidUsage, {}, "tenant_id and device_id and meter_id must be given"),
        (
            InvalidUsageType,
            ["t", "d", "m", 1],
            (
                "the event is a value of type list: it must be a mapping (in JSON: an object) of"
                " tenant_id, device_id, meter_id, total_usage, start_time, end_time, timestamp,"
                " metadata, idempotency_key"
            ),
        ),
        (
            InvalidUsageType,
            None,
            (
                "the event is None: it must be a mapping (in JSON: an object) of tenant_id,"
                " device_id, meter_id, total_usage, start_time, end_time, timestamp, metadata,"
                " idempotency_key"
            ),
        ),
    ],
)
def test_a_mapping_of_other_names_is_refused(
    error: type[MeterError], arguments: Any, message: str
) -> None:
    """A name too many or too few is named, together with the names there are."""
    with pytest.raises(error) as caught:
        usage_event_from(arguments)
    assert str(caught.value) == message


def test_none_says_nothing() -> None:
    """An optional argument that is None counts as not given, as null does in a file."""
    nothing = dict.fromkeys(("start_time", "end_time", "timestamp", "metadata", "idempotency_key"))
    assert event(**nothing) == event()


# ---- messages


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\u202eb\x1b\n", r"'a\u202eb\x1b\n'"),
        ("x" * 58, "'" + "x" * 58 + "'"),
        ("x" * 59, "'" + "x" * 56 + "..."),
        ("\U0010ffff" * 99, "'" + (r"\U0010ffff" * 6)[:56] + "..."),
        (b"\x1b" * 99, "b'" + (r"\x1b" * 20)[:55] + "..."),
        (2**128 - 1, "340282366920938463463374607431768211455"),
        (2**128, "an integer of 129 bits"),
        (1.5, "1.5"),
        (None, "None"),
        (Shouting("quiet"), "'quiet'"),
        (type("Odd\x1b", (), {})(), r"a value of type Odd\x1b"),
    ],
)
def test_a_value_is_shown_short_and_harmless(value: object, text: str) -> None:
    """What a message shows of a foreign value is ASCII, at most 60 characters, and runs nothing."""
    assert shown(value) == text
    assert len(text) <= 60


def test_the_public_way_to_blake2_gives_the_same_fingerprints() -> None:
    """Where the small module has another name, hashlib gives the same bytes."""
    script = (
        "import hashlib, sys; sys.modules['_blake2'] = None\n"
        "from meter_lib import usage\n"
        "assert usage.blake2b is hashlib.blake2b\n"
        "print(usage.usage_event('t', 'd', 'm', 1).fingerprint().hex())\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == usage_event("t", "d", "m", 1).fingerprint().hex()
