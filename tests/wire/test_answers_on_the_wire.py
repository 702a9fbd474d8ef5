from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.clock import SystemClock
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Ambiguous,
    Answered,
    Delivered,
    Refused,
    Rejected,
    Request,
    Retriable,
    Unavailable,
    Undecided,
)
from meter_worker.record_table import RECORD_ROWS
from meter_worker.rest_backend import RestAccounts, RestBackend
from meter_worker.verdict_table import ACCOUNT_ROWS, DELIVERY_ROWS
from meter_worker.verdicts import judgement_of_account, judgement_of_delivery
from tests.wire.answers import ACCOUNTS, DELIVERIES, Canned
from tests.wire.watched import WatchedLink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.wire.conftest import OneAnswer

REFUSALS = {"rejected": "refused", "too_large": "too large", "key_conflict": "key conflict"}


def letter(verdict: object) -> str:
    """Write a verdict as one letter."""
    match verdict:
        case Delivered():
            return "D"
        case Retriable():
            return "R"
        case Rejected("too_large"):
            return "L"
        case Rejected("rejected"):
            return "X"
        case Undecided():
            return "U"
    raise AssertionError(verdict)


def in_short(outcome: object) -> str:
    """Write an outcome in the words of `tests.wire.answers`."""
    match outcome:
        case Answered(verdicts, outage):
            letters = "".join(map(letter, verdicts))
            return letters if outage is None else f"{letters}, {in_short(outage)}"
        case Refused(reason):
            return REFUSALS[reason]
        case Ambiguous():
            return "ambiguous"
        case AccountUnknown():
            return "unknown"
        case AccountFound(customer_id):
            return f"customer {customer_id}".replace('"', "'")
        case Unavailable(detail, seconds, timed_out, wants_an_operator):
            assert (bool(detail), detail.isprintable(), timed_out) == (True, True, False)
            words = "operator" if wants_an_operator else "outage"
            return words if seconds is None else f"{words} for {seconds:g} s"
    raise AssertionError(outcome)


def names(canned: Sequence[Canned]) -> list[str]:
    """Name the tests."""
    return [one.name for one in canned]


@pytest.mark.parametrize("canned", DELIVERIES, ids=names(DELIVERIES))
def test_every_answer_to_a_delivery_has_its_verdict(server: OneAnswer, canned: Canned) -> None:
    """Over a real socket, with the headers that its sender has."""
    server.answer = canned.answer
    clock = SystemClock()
    link = WatchedLink(connect_timeout=10, read_timeout=20)
    backend = RestBackend(
        link,
        stream_url=server.url,
        topic="usage-events",
        compression="none",
        clock=clock,
        dialect=canned.dialect,
    )
    outcome = backend.deliver(Request("t", "d", "k", ['{"value":{"n":1}}'] * canned.sent))
    link.interrupt()
    rows: tuple[str, ...] = ()
    if link.reply is not None:
        status, headers, body = link.reply
        judgement = judgement_of_delivery(
            status, headers, body, sent=canned.sent, now=clock.now(), dialect=canned.dialect
        )
        assert repr(judgement.outcome) == repr(outcome)
        rows = judgement.rows

    assert (in_short(outcome), rows) == (canned.means, canned.rows)


@pytest.mark.parametrize("canned", ACCOUNTS, ids=names(ACCOUNTS))
def test_every_answer_of_the_accounts_api_has_its_verdict(
    server: OneAnswer, canned: Canned
) -> None:
    """The same, for who pays."""
    server.answer = canned.answer
    clock = SystemClock()
    link = WatchedLink(connect_timeout=10, read_timeout=20)
    outcome = RestAccounts(link, base_url=server.url, clock=clock).look_up("t")
    link.interrupt()
    rows: tuple[str, ...] = ()
    if link.reply is not None:
        again, row = judgement_of_account(*link.reply, now=clock.now())
        assert repr(again) == repr(outcome)
        rows = (row,)

    assert (in_short(outcome), rows) == (canned.means, canned.rows)


@pytest.mark.parametrize(
    ("tables", "canned"),
    [([DELIVERY_ROWS, RECORD_ROWS], DELIVERIES), ([ACCOUNT_ROWS], ACCOUNTS)],
)
def test_every_row_is_met_by_an_answer(tables: Any, canned: list[Canned]) -> None:
    """No row is there without a case; names are unique, so that none hides behind another."""
    rows = [row.name for table in tables for row in table]

    assert len(set(rows)) == len(rows)
    assert set(rows) - {name for one in canned for name in one.rows} == set()


def test_there_are_answers_enough() -> None:
    """The field has more than a few of them; none is listed twice."""
    assert len({one.name for one in DELIVERIES}) == len(DELIVERIES) >= 90
