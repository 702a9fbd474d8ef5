from __future__ import annotations

import email.utils
import json
from typing import Any

import pytest

from meter_worker.answers import retry_after_seconds
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Ambiguous,
    Answered,
    Delivered,
    Refused,
    Rejected,
    Retriable,
    Unavailable,
    Undecided,
)
from meter_worker.verdicts import judge_account, judge_delivery

NOON = 1_759_791_552_000
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><title>Welcome</title>\x1b[31m</html>"
GOOD: dict[str, Any] = {"offset": 620, "partition": 2}
STALE_METADATA = "This request is for a topic or partition that does not exist on this broker."
TOO_LARGE = (
    "The server has a configurable maximum message size to avoid unbounded memory allocation"
)
NOT_KAFKA = "not the answer of a Kafka REST proxy (a captive portal, or a wrong URL)"
NO_ACCOUNT = "not the answer of the accounts API (a captive portal, or a wrong URL)"
NO_WONDER = "an error status over entries without an error"
NO_RIGHTS = "the proxy may not write to its broker"
NO_TOPIC = "check the topic, it is missing or invalid"


# Outcomes are tuples, so those of two kinds may be equal; told, they are not.
told = repr


def body(*entries: Any) -> bytes:
    """Write an answer with these entries, as every proxy does."""
    answer = {"key_schema_id": None, "offsets": list(entries), "value_schema_id": None}
    return json.dumps(answer).encode()


def judged(
    status: int,
    answer: bytes,
    *,
    sent: int = 1,
    retry_after: str | None = None,
    dialect: str = "auto",
) -> Any:
    """Say what an answer means."""
    headers = {} if retry_after is None else {"rEtRy-AfTeR": retry_after}
    return judge_delivery(status, headers, answer, sent=sent, now=NOON, dialect=dialect)


def to_be_seen_to(detail: str, retry_after: float | None = None) -> str:
    """Tell an outage that wants an operator."""
    return told(Unavailable(detail, retry_after, wants_an_operator=True))


# What counts as delivered


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    "entry",
    [
        {"offset": 620, "partition": 2},
        {"partition": 0, "offset": 0, "error_code": None, "error": None},
        {"partition": 0, "offset": 0, "error_code": None, "message": None},
        # Karapace acknowledges without a place where it did not wait for one.
        {"partition": 0, "offset": -1},
        {"partition": 0, "offset": 2**63 - 1, "timestamp": 5},
    ],
)
def test_an_offset_without_an_error_is_a_delivery(status: int, entry: Any) -> None:
    """The proxies' own words for success, with and without nulls."""
    assert told(judged(status, body(entry, entry), sent=2)) == told(
        Answered((Delivered(), Delivered()))
    )


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"{}",
        b"true",
        b'"ok"',
        b'{"offsets":null}',
        b'{"offsets":{}}',
        b'{"offsets":"1"}',
        b'{"offsets":7}',
        b'{"status":"ok"}',
        b"Everything is fine.",
        LOGIN_PAGE,
        body(),
        body(GOOD, None),
        body(GOOD, 7),
        body(GOOD, []),
        body(GOOD, "x"),
        body(GOOD, {}),
        body(GOOD, {"partition": 0}),
        body(GOOD, {"offset": None, "partition": 0}),
        body(GOOD, {"offset": "5", "partition": 0}),
        body(GOOD, {"offset": 1.5, "partition": 0}),
        body(GOOD, {"offset": True, "partition": 0}),
        body(GOOD, {"offset": [], "partition": 0}),
        body(GOOD, {"offset": -2, "partition": 0}),
        body(GOOD, {"offset": 2**63, "partition": 0}),
        body(GOOD, {"offset": 5.0, "partition": 0}),
        body(GOOD, {"offset": False, "partition": 0}),
        body(GOOD, {"offset": float("nan"), "partition": 0}),
        body(GOOD, {"offset": 5, "partition": 0, "error_code": False}),
        body(GOOD, {"offset": 5, "partition": 0, "error_code": "NONE"}),
        body(GOOD, GOOD)[:-1],
        body(GOOD, GOOD) + b"}",
        b'{"offsets":[{"offset":1,"partition":0},{"offset":' + b"9" * 5000 + b"}]}",
        b"[" * 100_000,
        b'{"offsets":' + b"[" * 100_000,
        b"\xff\xfe\x00\xd8",
        b"\x00" * 100,
    ],
)
def test_success_is_nothing_but_one_sound_entry_for_each_record(status: int, answer: bytes) -> None:
    """Whatever else comes with a 2xx is an outage: no event is delivered, none is to blame."""
    outcome = judged(status, answer, sent=2)

    assert told(outcome) == to_be_seen_to(outcome.detail)
    assert outcome.detail.startswith(f"{NOT_KAFKA}: HTTP {status}: ")
    assert outcome.detail.isprintable()
    assert len(outcome.detail) < 600


# Partial failures


@pytest.mark.parametrize("status", [200, 422])
def test_every_entry_is_read_whatever_the_status(status: int) -> None:
    """Records fail within a 200 (Confluent, Strimzi) and are stored within a 422 (Karapace)."""
    answer = body(
        {"error": STALE_METADATA, "error_code": 2},
        {"offset": 704, "partition": 0},
        {"error": TOO_LARGE, "error_code": 1},
        {"offset": None, "partition": None, "error_code": 50003, "error": "not the leader"},
    )

    assert told(judged(status, answer, sent=4)) == told(
        Answered(
            (
                Retriable(f"error_code 2: {STALE_METADATA}"),
                Delivered(),
                Rejected("too_large", f"error_code 1: {TOO_LARGE}"),
                Retriable("error_code 50003: not the leader"),
            )
        )
    )


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        # Karapace: 2 can be retried, 1 cannot, save for what its own source calls retriable.
        (2, STALE_METADATA, Retriable),
        (1, "timed out waiting to publish message", Retriable),
        (1, "Timed out while publishing, producer buffer full", Retriable),
        (1, "Publish message cancelled", Retriable),
        (1, "KafkaTimeoutError: Timeout after waiting for 60 secs.", Retriable),
        (1, "This record is not to its broker's taste", Retriable),
        (1, None, Retriable),
        (1, TOO_LARGE, "too_large"),
        # Confluent.
        (50002, "Kafka error", Rejected),
        (50003, "Retriable Kafka error", Retriable),
        (50002, "The message is 2000000 bytes, larger than max.request.size", "too_large"),
        # Strimzi.
        (404, "Topic usage-events not present in metadata after 60000 ms.", Retriable),
        (500, "any error of its producer", Retriable),
        # Kafka's own numbers, as Redpanda gives them.
        (3, "unknown topic or partition", Retriable),
        (6, "not the leader", Retriable),
        (7, "request timed out", Retriable),
        (10, None, "too_large"),
        (18, "record list too large", "too_large"),
        (17, "invalid topic", Rejected),
        (17, None, Rejected),
        (87, "invalid record", Rejected),
        # What nobody has described may well pass.
        (123456, "?", Retriable),
        (None, "an error without a code", Retriable),
        (10**400, "a code that is none", Retriable),
    ],
)
def test_an_error_is_judged_by_its_code_and_words(
    code: int | None, text: str | None, verdict: Any
) -> None:
    """A rejection is what would happen again; everything else is tried again."""
    # Beside another one: on all records, some of these speak of the topic.
    _, got = judged(422, body(GOOD, {"error_code": code, "error": text}), sent=2).verdicts

    if verdict is Retriable:
        assert told(got) == told(Retriable(got.detail))
    else:
        reason = "rejected" if verdict is Rejected else verdict
        assert told(got) == told(Rejected(reason, got.detail))
    assert got.detail.startswith(f"error_code {code}"[:100])
    assert len(got.detail) <= 500


def test_the_text_of_an_error_may_be_called_message() -> None:
    """Strimzi's bridge says `message` where the others say `error`."""
    assert told(judged(200, body({"error_code": 500, "message": "no"}))) == told(
        Answered((Retriable("error_code 500: no"),))
    )


@pytest.mark.parametrize("status", [200, 401, 403])
@pytest.mark.parametrize("code", [29, 31, 53, 58, 40101, 40301])
def test_missing_rights_at_the_broker_are_an_outage_beside_what_was_stored(
    status: int, code: int
) -> None:
    """Records that the proxy may not write are undecided; those stored beside them are in."""
    answer = body(GOOD, {"offset": None, "partition": None, "error_code": code, "error": "denied"})

    assert told(judged(status, answer, sent=2)) == told(
        Answered(
            (Delivered(), Undecided()),
            Unavailable(f"{NO_RIGHTS}: error_code {code}: denied", wants_an_operator=True),
        )
    )


@pytest.mark.parametrize("status", [400, 401, 403, 409, 413, 422])
def test_an_error_status_without_any_error_is_no_success(status: int) -> None:
    """Success is a 2xx; a refusal whose entries are all sound contradicts itself."""
    outcome = judged(status, body(GOOD, GOOD), sent=2)

    assert told(outcome) == to_be_seen_to(outcome.detail)
    assert outcome.detail.startswith(f"{NO_WONDER}: HTTP {status}: ")


MISCOUNTED: list[Any] = [
    [GOOD],
    [GOOD] * 3,
    [{"error_code": 1, "error": "x"}],
    [GOOD, GOOD, {"error_code": 2, "error": "x"}],
    [{"offset": 1, "partition": 0}, {"offset": 1, "partition": 1}, {"offset": 1, "partition": 2}],
]


@pytest.mark.parametrize("status", [200, 400, 422])
@pytest.mark.parametrize("entries", MISCOUNTED)
@pytest.mark.parametrize("dialect", ["auto", "confluent", "karapace", "strimzi"])
def test_a_wrong_number_of_entries_is_ambiguous(
    status: int, entries: list[Any], dialect: str
) -> None:
    """Some are stored, but who cannot be known: nobody is refused and nobody delivered."""
    outcome = judged(status, body(*entries), sent=2, dialect=dialect)

    # It is so for good where each entry may be that of a partition.
    lasting = status == 200 and entries == [GOOD]
    assert told(outcome) == told(Ambiguous(outcome.detail, lasting))
    assert outcome.detail.startswith(f"{len(entries)} entries for 2 records: HTTP {status}: ")


@pytest.mark.parametrize("status", [200, 400, 422])
@pytest.mark.parametrize("sent", [1, 2])
@pytest.mark.parametrize("dialect", ["auto", "redpanda"])
def test_no_entry_at_all_is_no_answer(status: int, sent: int, dialect: str) -> None:
    """An empty list says nothing of any record."""
    outcome = judged(status, body(), sent=sent, dialect=dialect)

    assert told(outcome) == to_be_seen_to(outcome.detail)


@pytest.mark.parametrize("status", [200, 400, 422])
@pytest.mark.parametrize("dialect", ["auto", "redpanda"])
def test_a_record_alone_is_never_ambiguous(status: int, dialect: str) -> None:
    """To send it alone once more would tell no more."""
    outcome = judged(status, body(GOOD, GOOD), dialect=dialect)

    assert told(outcome) == to_be_seen_to(outcome.detail)


# Redpanda


PARTITIONED: list[Any] = [{"offset": 5, "partition": 0}, {"offset": 9, "partition": 2}]


def test_one_sound_entry_a_partition_is_a_delivery_where_redpanda_is_named() -> None:
    """It groups its answer by partition; only who knows the proxy may believe that."""
    assert told(judged(200, body(*PARTITIONED), sent=500, dialect="redpanda")) == told(
        Answered((Delivered(),) * 500)
    )


@pytest.mark.parametrize(
    ("status", "entries"),
    [
        (200, [*PARTITIONED, {"offset": 6, "partition": 0}]),
        (200, [*PARTITIONED, {"offset": 6, "partition": None}]),
        (200, [*PARTITIONED, {"offset": 6}]),
        (200, [*PARTITIONED, {"offset": 6, "partition": "1"}]),
        (200, [*PARTITIONED, {"offset": 6, "partition": True}]),
        (200, [*PARTITIONED, {"offset": -1, "partition": 1, "error_code": 7}]),
        (200, [{"offset": n, "partition": n} for n in range(501)]),
        (422, PARTITIONED),
    ],
)
def test_short_answers_that_do_not_add_up_are_ambiguous_even_of_redpanda(
    status: int, entries: list[Any]
) -> None:
    """A partition twice or unnamed, an error among them, more than were sent, no success."""
    outcome = judged(status, body(*entries), sent=500, dialect="redpanda")

    assert told(outcome) == told(Ambiguous(outcome.detail))


# Dialects


def confluent(code: int) -> dict[str, Any]:
    """Write a failed entry as Confluent's proxy does."""
    return {"partition": None, "offset": None, "error_code": code, "error": "x"}


def karapace(code: int) -> dict[str, Any]:
    """Write a failed entry as Karapace does."""
    return {"error": "x", "error_code": code}


def strimzi(code: int) -> dict[str, Any]:
    """Write a failed entry as Strimzi's bridge does."""
    return {"error_code": code, "message": "x"}


def redpanda(code: int) -> dict[str, Any]:
    """Write a failed entry as Redpanda's proxy does."""
    return {"partition": 0, "offset": -1, "error_code": code}


@pytest.mark.parametrize(
    ("entry", "dialect", "kind"),
    [
        (confluent(1), "auto", Rejected),
        (karapace(1), "auto", Retriable),
        (strimzi(1), "auto", Retriable),
        (redpanda(1), "auto", Retriable),
        # The settings win over the shape.
        (karapace(1), "confluent", Rejected),
        (confluent(1), "karapace", Retriable),
        *(
            (shape(code), "auto", Retriable)
            for shape in (confluent, karapace, strimzi, redpanda)
            for code in (2, 3, 404, 500)
        ),
        *(
            (shape(code), "auto", Rejected)
            for shape in (confluent, karapace, strimzi, redpanda)
            for code in (17, 87, 50002)
        ),
    ],
)
def test_a_code_means_what_its_proxy_means(entry: Any, dialect: str, kind: type[Any]) -> None:
    """The same number is one thing in Karapace and another in Confluent's proxy."""
    if entry.get("offset") == -1:
        # Else it may be an entry of Redpanda's for a partition.
        entry = entry | {"partition": GOOD["partition"]}
    outcome = judged(200, body(GOOD, entry), sent=2, dialect=dialect)

    assert [type(verdict) for verdict in outcome.verdicts] == [Delivered, kind]


def test_entries_of_partitions_are_not_matched_to_records_by_chance() -> None:
    """As many partitions as records, one of which failed: nobody knows whose records are stored."""
    answer = body({"offset": 5, "partition": 0}, redpanda(7) | {"partition": 1})
    for dialect in ("auto", "redpanda"):
        outcome = judged(200, answer, sent=2, dialect=dialect)
        assert told(outcome) == told(Ambiguous(outcome.detail))


@pytest.mark.parametrize("sent", [1, 3])
@pytest.mark.parametrize("entry", [redpanda(3), strimzi(404), redpanda(17), confluent(17)])
def test_a_topic_that_is_missing_for_all_is_an_outage(entry: Any, sent: int) -> None:
    """No record is to blame, and each of them would fare alike."""
    outcome = judged(200, body(*[entry] * sent), sent=sent)

    assert told(outcome) == to_be_seen_to(outcome.detail)
    assert outcome.detail.startswith(f"{NO_TOPIC}: error_code {entry['error_code']}: ")


@pytest.mark.parametrize("other", [strimzi(500), redpanda(7), karapace(2), GOOD])
def test_a_topic_that_is_missing_for_some_is_no_outage(other: Any) -> None:
    """Metadata that is stale on one partition passes."""
    outcome = judged(200, body(redpanda(3), strimzi(404), other), sent=3)

    assert [type(verdict) for verdict in outcome.verdicts[:2]] == [Retriable, Retriable]


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ({"offset": 5, "partition": 0, "error_code": 0}, Delivered()),
        ({"offset": 5, "partition": 0, "error_code": 0, "error": ""}, Delivered()),
        ({"offset": 5, "error_code": 0, "error": "x"}, Retriable("error_code 0: x")),
        ({"offset": 5, "error_code": None, "error": False}, Retriable("error_code None: false")),
        ({"offset": 5, "error": {}}, Retriable("error_code None: {}")),
        ({"offset": 5, "message": "x"}, Retriable("error_code None: x")),
    ],
)
def test_code_0_is_no_error_unless_it_comes_with_words(entry: Any, verdict: Any) -> None:
    """It is NONE among Kafka's numbers; any words for an error, however odd, are one."""
    assert told(judged(200, body(entry))) == told(Answered((verdict,)))


# Keys that are known there

EXISTS = [
    (
        b'{"status":422,"error":"Unprocessable Entity","code":"validation_errors",'
        b'"error_details":{"transaction_id":["value_already_exist"]}}'
    ),
    b'{"code":"value_already_exist"}',
    b'{"message":"Event with id 7f3a already exists"}',
    b'{"error":{"message":"duplicate idempotency_key"}}',
    b'{"message":"This transaction_id has already been processed"}',
    b'{"message":"Already exists."}',
    b'{"error":"duplicate"}',
    b'{"errors":[{"detail":"record already ingested"}]}',
]
NOT_OURS = [
    b'{"message":"topic usage-events already exists"}',
    b'{"error_code":40902,"message":"Consumer instance with the specified ID already exists."}',
    b'{"message":"schema with this id already exists"}',
    b'{"message":"duplicate field id in JSON"}',
    b'{"message":"duplicate header"}',
    b'{"message":"customer id already exists"}',
    b'{"message":"the value exceeds what already exists in the quota"}',
    b'{"message":"duplicate sequence number"}',
    b'{"message":"no such event"}',
    b'{"message":"out of space"}',
    b'["already exists"]',
]


@pytest.mark.parametrize("status", [400, 409, 422])
@pytest.mark.parametrize("answer", EXISTS)
def test_an_event_whose_key_is_known_there_is_delivered(status: int, answer: bytes) -> None:
    """Alone it can only be meant itself; among others it is halved down to."""
    assert told(judged(status, answer)) == told(Answered((Delivered(),)))
    outcome = judged(status, answer, sent=2)
    assert told(outcome) == told(Refused("rejected", outcome.detail))


@pytest.mark.parametrize("status", [400, 409, 422])
@pytest.mark.parametrize("sent", [1, 2])
@pytest.mark.parametrize(
    "answer", [*NOT_OURS, b"already exists", b"<p>already exists</p>", b'"already exists"']
)
def test_what_else_exists_delivers_nothing(status: int, sent: int, answer: bytes) -> None:
    """Topics, consumers and fields may exist as they like; and a page is nobody's word."""
    assert isinstance(judged(status, answer, sent=sent), Refused | Unavailable)


@pytest.mark.parametrize("status", [200, 401, 404, 500, 503])
@pytest.mark.parametrize("answer", EXISTS)
def test_no_other_status_says_that_a_key_is_known(status: int, answer: bytes) -> None:
    """A 5xx may say what it likes."""
    assert isinstance(judged(status, answer), Unavailable)


def test_a_record_whose_key_is_known_there_is_delivered_beside_others() -> None:
    """The same, said of one record."""
    known = {"error_code": 1, "error": "event id already exists"}
    outcome = judged(422, body(known, karapace(1)), sent=2)

    assert told(outcome) == told(Answered((Delivered(), Retriable("error_code 1: x"))))


@pytest.mark.parametrize("status", [400, 409, 422])
@pytest.mark.parametrize(
    "answer",
    [
        (
            b'{"title":"Idempotency-Key is already used","detail":"Idempotency Key MUST not be '
            b'reused across different payloads of this operation."}'
        ),
        (
            b'{"error":{"type":"idempotency_error","message":"Keys for idempotent requests: this'
            b' idempotency_key was used with different parameters"}}'
        ),
    ],
)
@pytest.mark.parametrize("sent", [1, 2])
def test_a_key_used_for_other_content_is_a_conflict(status: int, answer: bytes, sent: int) -> None:
    """It is no duplicate: what is stored under the key is something else."""
    outcome = judged(status, answer, sent=sent)

    assert told(outcome) == told(Refused("key_conflict", outcome.detail))


def test_a_key_in_use_is_waited_for() -> None:
    """The first request with it is still under way, and may yet store everything."""
    answer = b'{"title":"A request is outstanding for this Idempotency-Key"}'

    assert told(judged(409, answer, retry_after="3")) == told(
        Unavailable(f"HTTP 409: {answer.decode()}", 3.0)
    )


@pytest.mark.parametrize("code", [[], {}, "40301", 1.5, [[[]]], {"a": 1}])
def test_a_code_that_is_no_number_is_a_garbled_answer(code: Any) -> None:
    """What cannot be a proxy's error counts against no event."""
    outcome = judged(422, body(GOOD, {"error_code": code, "error": "x"}), sent=2)

    assert told(outcome) == to_be_seen_to(outcome.detail)
    assert outcome.detail.startswith("not the answer of a Kafka REST proxy ")


@pytest.mark.parametrize("text", [7, [], {"a": 1}, True, "\x1b[31mred\r\n" * 500])
def test_an_error_of_any_shape_makes_a_printable_detail(text: Any) -> None:
    """A detail is one short printable line, whatever the answer held."""
    [got] = judged(422, body({"error_code": 2, "error": text})).verdicts

    assert told(got) == told(Retriable(got.detail))
    assert got.detail.isprintable()
    assert len(got.detail) <= 500


# Refusals as a whole


@pytest.mark.parametrize(
    ("status", "answer", "detail"),
    [
        (
            422,
            b'{"error_code":422,"message":"Invalid request format"}',
            "HTTP 422: Invalid request format",
        ),
        (
            400,
            b'{"error_code":400,"message":"Produce record must be an object"}',
            "HTTP 400: Produce record must be an object",
        ),
        (
            400,
            b'{"error_code":400,"message":"\'records\' must be an array"}',
            "HTTP 400: 'records' must be an array",
        ),
        (400, b"Invalid request JSON body", "HTTP 400: Invalid request JSON body"),
        (400, b"Missing request JSON body", "HTTP 400: Missing request JSON body"),
        (
            400,
            b'{"error_code":400,"message":"Malformed request"}',
            "HTTP 400: Malformed request",
        ),
        (
            400,
            b"Request body is not valid utf-8",
            "HTTP 400: Request body is not valid utf-8",
        ),
        (
            400,
            b'{"error_code":400,"message":"data={...}  is not a base64 string."}',
            "HTTP 400: data={...} is not a base64 string.",
        ),
    ],
)
@pytest.mark.parametrize("sent", [1, 500])
def test_a_bad_request_is_refused_as_a_whole(
    status: int, answer: bytes, detail: str, sent: int
) -> None:
    """Those checks come before anything is produced: nothing of it was stored."""
    assert told(judged(status, answer, sent=sent)) == told(Refused("rejected", detail))


@pytest.mark.parametrize("sent", [1, 500])
def test_a_body_too_large_is_refused_as_a_whole(sent: int) -> None:
    """A 413 says so of the request, and of an event once it is alone."""
    answer = b'{"error_code":413,"message":"HTTP Request Entity Too Large"}'

    assert told(judged(413, answer, sent=sent)) == told(
        Refused("too_large", "HTTP 413: HTTP Request Entity Too Large")
    )


# Outages


WORDS = {
    **dict.fromkeys(range(300, 400), "redirected (a login page, or the URL has moved)"),
    **dict.fromkeys((401, 403), "check the credentials"),
    407: "an HTTP proxy on the way wants credentials",
    **dict.fromkeys((404, 405, 406, 410, 415, 501, 505), "check the URL and the topic"),
    511: "the network wants a login",
    **dict.fromkeys((402, 409, 418, 421, 426, 428, 431, 451), "unexpected status"),
    **dict.fromkeys((100, 103, 600, 999), "not the answer of an HTTP server"),
}
"""What an operator reads first; a status that is not here is waited out."""


@pytest.mark.parametrize(
    ("status", "answer", "detail"),
    [
        # As Karapace was seen to say them.
        (403, b'{"message":"Forbidden"}', "HTTP 403: Forbidden"),
        (
            404,
            b'{"error_code":40401,"message":"Topic nope not found"}',
            "HTTP 404: Topic nope not found",
        ),
        (
            404,
            b'{"error_code":40402,"message":"Partition 77 not found"}',
            "HTTP 404: Partition 77 not found",
        ),
        (404, b"404: Not Found", "HTTP 404: 404: Not Found"),
        (405, b"405: Method Not Allowed", "HTTP 405: 405: Method Not Allowed"),
        (
            406,
            b'{"error_code":406,"message":"HTTP 406 Not Acceptable"}',
            "HTTP 406: HTTP 406 Not Acceptable",
        ),
        (
            415,
            b'{"error_code":415,"message":"HTTP 415 Unsupported Media Type"}',
            "HTTP 415: HTTP 415 Unsupported Media Type",
        ),
        (
            500,
            b'{"error_code":500,"message":"partition is not a valid int: abc"}',
            "HTTP 500: partition is not a valid int: abc",
        ),
        (500, b'{"code":500,"message":"Kafka node not ready"}', "HTTP 500: Kafka node not ready"),
        (503, b'{"message":"Bridge is overloaded"}', "HTTP 503: Bridge is overloaded"),
        # Others on the way.
        *((status, b"no", f"HTTP {status}: no") for status in (300, 301, 302, 303, 304, 307, 308)),
        *((status, b"no", f"HTTP {status}: no") for status in (401, 402, 407, 408, 409, 410, 418)),
        *((status, b"no", f"HTTP {status}: no") for status in (421, 425, 426, 428, 429, 431, 451)),
        *(
            (status, b"no", f"HTTP {status}: no")
            for status in (501, 502, 504, 505, 507, 509, 511, 520, 599)
        ),
        *((status, b"no", f"HTTP {status}: no") for status in (100, 103, 600)),
        (999, b"no", "HTTP 999: no"),
        (502, LOGIN_PAGE, "HTTP 502: <!DOCTYPE html> <html><title>Welcome</title> [31m</html>"),
        (503, b'{"message":{"a":1}}', 'HTTP 503: {"a": 1}'),
        (503, b'{"message":null}', 'HTTP 503: {"message":null}'),
        # Entries say nothing where the proxy has not spoken of records.
        (500, body(GOOD), "HTTP 500: " + body(GOOD).decode()),
        (404, body(GOOD), "HTTP 404: " + body(GOOD).decode()),
        (302, body(GOOD), "HTTP 302: " + body(GOOD).decode()),
    ],
)
def test_every_other_status_is_an_outage(status: int, answer: bytes, detail: str) -> None:
    """It says nothing of the events; an operator is told what to do where waiting is in vain."""
    words = WORDS.get(status)
    expected = told(Unavailable(detail)) if words is None else to_be_seen_to(f"{words}: {detail}")

    for sent in (1, 2):
        assert told(judged(status, answer, sent=sent)) == expected


def http_date(seconds_from_now: int) -> str:
    """Write an instant as HTTP does."""
    return email.utils.formatdate(NOON / 1000 + seconds_from_now, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("86400", 86_400),
        ("9" * 400, 999_999_999),
        (http_date(90), 90),
        (http_date(0), 0),
        (http_date(-90), 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (http_date(90).replace("GMT", "-0000"), 90),
        (http_date(90).replace("GMT", "+0100"), 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 251_642_509_247),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str, seconds: float) -> None:
    """Both forms of RFC 9110 count, relative to our own clock; a date that has passed is now."""
    assert told(judged(503, b"no", retry_after=value)) == told(
        Unavailable("HTTP 503: no", float(seconds))
    )


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Thu, 01 Jan 2032 00:00:10 GMT", 50),
        ("Thu, 01 Jan 2032 00:01:10 GMT", 0),
        ("soon", 3600),
        ("", 3600),
    ],
)
def test_a_date_to_come_again_is_meant_by_the_clock_of_whoever_names_it(
    date: str, seconds: float
) -> None:
    """A device whose own clock is years off waits no longer, and no shorter, than it was asked."""
    headers = {"Date": date, "Retry-After": "Thu, 01 Jan 2032 00:01:00 GMT"}
    asked_for = retry_after_seconds(headers, 1000 * (1_956_528_060 - 3600))
    assert asked_for == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "soon",
        "-5",
        "1.5",
        "1e3",
        "5, 7",
        "٣",  # a digit, but none of HTTP's
        "0x10",
        "Mon, 99 Foo 2025 99:99:99 GMT",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999",
        "Mon, 01 Jan " + "9" * 5000,
        "\x00",
    ],
)
def test_a_garbled_retry_after_asks_for_nothing(value: str) -> None:
    """What cannot be read is no reason to wait, and none to fall over."""
    assert told(judged(429, b"no", retry_after=value)) == told(Unavailable("HTTP 429: no"))


# Customer accounts


def asked(status: int, answer: bytes, *, retry_after: str | None = None) -> Any:
    """Say what an answer of the accounts API means."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return judge_account(status, headers, answer, now=NOON)


@pytest.mark.parametrize(
    ("answer", "customer_id"),
    [
        (b'{"id":"cust-1","name":"x"}', '"cust-1"'),
        (b'[{"id":"cust-1"},{"id":"cust-2"}]', '"cust-1"'),
        (b'{"id":42}', "42"),
        (b'{"id":-1}', "-1"),
        (b'{"id":18446744073709551615}', "18446744073709551615"),
        ('{"id":"kündin \\"a\\""}'.encode(), '"kündin \\"a\\""'),
        (b'{"id":"k\\u00fcndin"}', '"kündin"'),
    ],
)
def test_an_account_is_an_object_or_a_list_whose_first_counts(
    answer: bytes, customer_id: str
) -> None:
    """The id is kept as JSON text: numbers stay numbers, text stays text."""
    assert told(asked(200, answer)) == told(AccountFound(customer_id))


@pytest.mark.parametrize(
    ("status", "answer", "detail"),
    [
        (200, b"[]", "HTTP 200: []"),
        (404, b'{"error_code":404,"message":"No account"}', "HTTP 404: No account"),
        (404, b"{}", "HTTP 404: {}"),
    ],
)
def test_an_account_is_unknown_by_the_apis_own_word_only(
    status: int, answer: bytes, detail: str
) -> None:
    """An empty list, or a 404 in JSON, is the API itself saying that there is none."""
    assert told(asked(status, answer)) == told(AccountUnknown(detail))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"7",
        b'"cust-1"',
        b"{}",
        b'{"id":null}',
        b'{"id":""}',
        b'{"id":0}',
        b'{"id":true}',
        b'{"id":1.5}',
        b'{"id":{}}',
        b'{"id":["a"]}',
        b"[null]",
        b"[[]]",
        b"[{}]",
        b"[" * 100_000,
        # JSON can escape half a character, but it can neither be stored nor sent.
        b'{"id":"\\ud800"}',
        b'{"id":"' + b"a" * 256 + b'"}',
        b'{"id":18446744073709551616}',
        LOGIN_PAGE,
    ],
)
def test_an_answer_without_a_usable_id_is_an_outage(answer: bytes) -> None:
    """A 200 that names no customer says nothing about the tenant."""
    outcome = asked(200, answer)

    assert told(outcome) == to_be_seen_to(outcome.detail)
    assert outcome.detail.startswith(f"{NO_ACCOUNT}: HTTP 200: ")
    assert outcome.detail.isprintable()


@pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 401, 403, 405, 410, 429, 500, 503])
def test_any_other_status_of_the_accounts_api_is_an_outage(status: int) -> None:
    """It is waited out, as long as the API asks for; no tenant is to blame."""
    words = {**WORDS, 201: NO_ACCOUNT, 204: NO_ACCOUNT, 400: "unexpected status"}.get(status)
    detail = f"HTTP {status}: no"
    expected = (
        told(Unavailable(detail, 9.0))
        if words is None
        else to_be_seen_to(f"{words}: {detail}", 9.0)
    )

    assert told(asked(status, b'{"id":"cust-1","message":"no"}', retry_after="9")) == expected


@pytest.mark.parametrize("answer", [b"", b"404: Not Found", LOGIN_PAGE, b"[]", b'"no"'])
def test_a_404_that_is_not_the_apis_own_is_an_outage(answer: bytes) -> None:
    """Gateways and captive portals say 404 as well, but not as a JSON object."""
    outcome = asked(404, answer)

    assert told(outcome) == to_be_seen_to(outcome.detail)


@pytest.mark.parametrize("status", [401, 403])
def test_errors_below_401_and_403_count_against_no_event(status: int) -> None:
    """Who is stored is stored; whoever is not has met an outage of our credentials."""
    outcome = judged(status, body(GOOD, {"error_code": 2, "error": "x"}), sent=2)

    assert isinstance(outcome, Answered)
    assert list(outcome.verdicts) == [Delivered(), Undecided()]
    assert outcome.outage is not None


def test_an_error_beside_the_offsets_is_no_success() -> None:
    """An answer that contradicts itself is believed in nothing."""
    for error in (
        b'"error":"boom"',
        b'"error_code":50001,"message":"x"',
        b'"error":{"a":[1]}',
        b'"errors":["boom"]',
        b'"validation_errors":["boom"]',
        b'"meta":{"error":"boom"}',
    ):
        answer = b'{"offsets":[{"partition":0,"offset":1}],' + error + b"}"
        for sent in (1, 2):
            for dialect in ("auto", "redpanda"):
                outcome = judged(200, answer, sent=sent, dialect=dialect)
                assert told(outcome) == to_be_seen_to(outcome.detail)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"  ",
        b"<html>bad request</html>",
        b"\n<!doctype html>",
        b"\xef\xbb\xbf<html>bad request</html>",
        b'{"error_code":422,"message":"Invalid req',
        b'{"offsets":[{"error_code":1,"error":"no"},{"off',
        b'["',
        b'"Invalid req',
        b"\xff\x00\n\x1b",
        b"bad \x00 request",
        b"\x1f\x8b\x08\x00",
    ],
)
def test_a_page_or_half_an_answer_refuses_no_event(status: int, answer: bytes) -> None:
    """What no proxy of Kafka answers is not the backend's word on an event."""
    for sent in (1, 2):
        outcome = judged(status, answer, sent=sent)
        assert told(outcome) == to_be_seen_to(outcome.detail)
