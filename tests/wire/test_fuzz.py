from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meter_lib.clock import SystemClock
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Ambiguous,
    Answered,
    Delivered,
    Refused,
    Request,
    Unavailable,
)
from meter_worker.rest_backend import RestAccounts, RestBackend
from meter_worker.verdicts import judge_account, judge_delivery
from tests.wire.answers import ACCOUNTS, DELIVERIES
from tests.wire.watched import WatchedLink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.wire.conftest import OneAnswer

NOON = 1_759_791_552_000
MIB = 1024 * 1024
DIALECTS = ["auto", "confluent", "karapace", "strimzi", "redpanda"]

# The same on every run: what it finds is a defect, not bad luck.
thorough = settings(max_examples=1500, deadline=None, derandomize=True, database=None)
over_a_socket = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# -- what may be delivered, written a second time and without the tables -------------------


def is_sound(entry: Any) -> bool:
    """Return whether an entry has an offset and nothing that could be an error."""
    offset = entry.get("offset") if isinstance(entry, dict) else None
    return (
        type(offset) is int
        and -1 <= offset < 2**63
        and all(entry.get(name) in (None, "") for name in ("error", "message"))
        and (entry.get("error_code") is None or type(entry["error_code"]) is int)
        and entry.get("error_code") in (None, 0)
    )


def speaks_of_a_duplicate(said: Any) -> bool:
    """Return whether something like "already exists" is said at all."""
    text = json.dumps(said).lower()
    return "already" in text or "duplicate" in text


def may_be_delivered(status: int, body: bytes, sent: int, place: int, dialect: str) -> bool:
    """Return whether this answer can mean that the record at this place is stored."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(said, dict):
        return False
    entries = said.get("offsets")
    if not isinstance(entries, list):
        return sent == 1 and status in {400, 409, 422} and speaks_of_a_duplicate(said)
    success = status // 100 == 2
    if success and (said.get("error") or said.get("error_code")):
        return False
    if len(entries) == sent:
        return (
            success or (status in {400, 401, 403, 422} and not all(map(is_sound, entries)))
        ) and (is_sound(entries[place]) or speaks_of_a_duplicate(entries[place]))
    partitions = [entry.get("partition") if is_sound(entry) else None for entry in entries]
    return (
        success
        and dialect == "redpanda"
        and 0 < len(entries) < sent
        and all(type(partition) is int for partition in partitions)
        and len(set(partitions)) == len(entries)
    )


def check(outcome: Any, status: int, body: bytes, sent: int, dialect: str) -> None:
    """Check that it is one of the outcomes, fit for a log, and delivers nothing by mistake."""
    match outcome:
        case Answered(verdicts, outage):
            assert len(verdicts) == sent
            for place, verdict in enumerate(verdicts):
                if isinstance(verdict, Delivered):
                    assert may_be_delivered(status, body, sent, place, dialect)
                for said in verdict:
                    assert_fit_for_a_log(said)
            if outage is not None:
                assert_fit_for_a_log(outage.detail)
        case Unavailable() | Refused() | Ambiguous():
            assert_fit_for_a_log(outcome.detail)
        case _:
            raise AssertionError(outcome)


def assert_fit_for_a_log(text: str) -> None:
    """One line, printable, not long, and it can be stored."""
    assert text.isprintable()
    assert len(text) < 700
    text.encode()


# -- answers that nobody has thought of ----------------------------------------------------

numbers = st.sampled_from([-2, -1, 0, 1, 2, 3, 10, 17, 29, 404, 500, 50002, 2**63 - 1, 2**63])
texts = st.sampled_from(
    ["", "x", "already exists", "duplicate event id", "topic already exists", "\ud800", "\x1b[0m"]
)
odd = st.one_of(
    numbers,
    texts,
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.text(max_size=9),
    st.just([]),
    st.just({}),
)
entries = st.one_of(
    st.builds(lambda o, p: {"offset": o, "partition": p}, st.integers(-1, 9), st.integers(0, 2)),
    st.dictionaries(
        st.sampled_from(["offset", "partition", "error_code", "error", "message", "x"]), odd
    ),
    odd,
)
tops = st.fixed_dictionaries(
    {},
    optional={
        "offsets": st.one_of(st.lists(entries, max_size=4), odd),
        "error_code": odd,
        "error": odd,
        "message": odd,
        "code": odd,
        "id": odd,
    },
)
json_values = st.recursive(
    odd,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)


def spoilt(answers: list[bytes]) -> st.SearchStrategy[bytes]:
    """Make answers of which something was lost, doubled or overwritten."""

    def spoil(answer: bytes, start: int, length: int, instead: bytes) -> bytes:
        start %= len(answer) + 1
        return answer[:start] + instead + answer[start + length :]

    return st.builds(
        spoil,
        st.sampled_from(answers),
        st.integers(0, 10_000),
        st.integers(0, 40),
        st.one_of(
            st.just(b""), st.binary(max_size=9), st.sampled_from([b"null", b"0", b'"', b"]"])
        ),
    )


WHOLE_ANSWERS = [canned.answer for canned in DELIVERIES if canned.sent < 9]
BODIES = [answer.partition(b"\r\n\r\n")[2] for answer in WHOLE_ANSWERS]
bodies = st.one_of(
    st.binary(max_size=200),
    tops.map(lambda top: json.dumps(top).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    spoilt(BODIES),
)
statuses = st.one_of(
    st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 409, 413, 422, 429, 503]),
    st.integers(100, 999),
)
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "retry-after", "Content-Type", "X"]),
    st.one_of(
        st.text(max_size=40),
        st.integers().map(str),
        st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
        st.sampled_from(["Mon, 01 Jan 0000 00:00:00 -9999", "9" * 400, "1 Jan 1 0:0", "(((("]),
    ),
    max_size=3,
)


@thorough
@given(statuses, headers, bodies, st.integers(1, 4), st.sampled_from(DIALECTS))
@example(200, {}, b'{"offsets":[{"offset":1,"error_code":0,"error":0}]}', 1, "auto")
@example(200, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"}, b"", 1, "auto")
def test_any_answer_to_a_delivery_has_an_outcome(
    status: int, headers: dict[str, str], body: bytes, sent: int, dialect: str
) -> None:
    """Nothing raises, and nothing is delivered but by what a second reading calls a success."""
    outcome = judge_delivery(status, headers, body, sent=sent, now=NOON, dialect=dialect)

    check(outcome, status, body, sent, dialect)
    if isinstance(outcome, Unavailable) and outcome.retry_after_seconds is not None:
        assert 0 <= outcome.retry_after_seconds < 10**12


names = st.sampled_from(["offset", "partition", "error_code", "error", "message"])
sound = st.builds(
    lambda offset, at: {"offset": offset, "partition": at}, st.integers(-1, 9), st.integers(0, 9)
)


@thorough
@given(
    st.sampled_from([200, 422]),
    st.lists(sound, min_size=1, max_size=3),
    st.dictionaries(names, odd, max_size=2),
    st.dictionaries(st.sampled_from(["error", "error_code", "message"]), odd, max_size=1),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from(DIALECTS),
)
def test_what_is_almost_a_success_has_an_outcome(
    status: int,
    entries: list[dict[str, Any]],
    oddities: dict[str, Any],
    top: dict[str, Any],
    more: int,
    dialect: str,
) -> None:
    """A member or two away from a success: the same, where most is at stake."""
    entries[0] = entries[0] | oddities
    body = json.dumps({"offsets": entries} | top).encode()
    sent = len(entries) + more
    outcome = judge_delivery(status, {}, body, sent=sent, now=NOON, dialect=dialect)

    check(outcome, status, body, sent, dialect)


@thorough
@given(st.lists(st.tuples(st.integers(-1, 2**63 - 1), st.integers(0, 99)), min_size=1, max_size=9))
def test_every_sound_success_is_a_delivery(places: list[tuple[int, int]]) -> None:
    """The other way round: what the proxies say for stored is never taken for anything else."""
    said = {"offsets": [{"offset": offset, "partition": at} for offset, at in places]}
    body = json.dumps(said).encode()

    for dialect in DIALECTS:
        outcome = judge_delivery(200, {}, body, sent=len(places), now=NOON, dialect=dialect)
        assert repr(outcome) == repr(Answered((Delivered(),) * len(places)))


@thorough
@given(statuses, headers, bodies | spoilt([b'{"id":"cust-1"}', b'[{"id":42}]']))
def test_any_answer_of_the_accounts_api_has_an_outcome(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    """An account is found by a 200 alone, with an id that can be sent on."""
    outcome = judge_account(status, headers, body, now=NOON)

    match outcome:
        case AccountFound(customer_id):
            said = json.loads(body)
            account = said[0] if isinstance(said, list) else said
            assert (status, json.loads(customer_id)) == (200, account["id"])
            assert type(account["id"]) in (int, str)
            customer_id.encode()
        case AccountUnknown(detail):
            assert status in {200, 404}
            assert_fit_for_a_log(detail)
        case Unavailable():
            assert_fit_for_a_log(outcome.detail)
        case _:
            raise AssertionError(outcome)


# -- over a socket ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def link() -> Iterator[WatchedLink]:
    """A link that lives through all of it."""
    made = WatchedLink(connect_timeout=20, read_timeout=20)
    yield made
    made.interrupt()


def deliver(link: WatchedLink, url: str, sent: int) -> Any:
    """Deliver some records."""
    backend = RestBackend(link, stream_url=url, topic="t", compression="none", clock=SystemClock())
    return backend.deliver(Request("t", "d", "k", ['{"value":{"n":1}}'] * sent))


heads = st.sampled_from(
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: ",
        b"HTTP/1.1 422 X\r\nRetry-After: ",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ]
)


@over_a_socket
@given(heads, st.binary(max_size=300))
def test_random_bytes_deliver_nothing(
    server: OneAnswer, link: WatchedLink, head: bytes, rest: bytes
) -> None:
    """Whatever comes over the wire is an outcome; what nobody meant is no delivery."""
    server.answer = head + rest
    outcome = deliver(link, server.url, 1)

    assert isinstance(outcome, Unavailable | Refused)
    assert_fit_for_a_log(outcome.detail)


@over_a_socket
@given(spoilt(WHOLE_ANSWERS), st.integers(1, 3))
def test_spoilt_answers_deliver_nothing_by_mistake(
    server: OneAnswer, link: WatchedLink, answer: bytes, sent: int
) -> None:
    """Of real answers a part is lost, doubled or overwritten, headers and framing included."""
    server.answer = answer
    outcome = deliver(link, server.url, sent)

    if link.reply is None:
        assert isinstance(outcome, Unavailable)
    else:
        check(outcome, link.reply.status, link.reply.body, sent, "auto")


@over_a_socket
@given(spoilt([canned.answer for canned in ACCOUNTS]))
def test_spoilt_accounts_are_found_by_no_mistake(
    server: OneAnswer, link: WatchedLink, answer: bytes
) -> None:
    """The same, for who pays."""
    server.answer = answer
    outcome = RestAccounts(link, base_url=server.url, clock=SystemClock()).look_up("t")

    if isinstance(outcome, AccountFound):
        assert link.reply is not None
        assert link.reply.status == 200
        assert outcome.customer_id in link.reply.body.decode()
    else:
        assert isinstance(outcome, AccountUnknown | Unavailable)


# -- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", [b"{},", b"[],", b'"ab",', b"1.5,", b'{"offset":1,"partition":0},', b'{"error":"x"},']
)
@pytest.mark.parametrize("framing", [b"[%s0]", b'{"offsets":[%s0]}', b'{"message":[%s0]}'])
def test_an_answer_takes_no_more_memory_than_a_few_times_its_length(
    part: bytes, framing: bytes
) -> None:
    """Four megabytes of small parts would be a hundred once they are parsed: they are not."""
    body = framing % (part * (4 * MIB // len(part)))
    tracemalloc.start()
    try:
        outcomes = [
            judge_delivery(200, {}, body, sent=500, now=NOON),
            judge_account(200, {}, body, now=NOON),
        ]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 2
    assert peak < 10 * MIB
