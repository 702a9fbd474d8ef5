from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meter_lib.outbox import Account, Link
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Unavailable,
)
from tests.fakes import refuse_where
from tests.unit.flusher_bench import (
    BASE,
    DOWN,
    LONGEST,
    all_delivered,
    named,
    numbered,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.flusher_bench import Bench


def test_the_customer_is_asked_once_and_kept_for_its_time(bench: Bench) -> None:
    """The answer is kept in the outbox, over restarts, until its time to live is over."""
    bench.post("a")
    bench.flush_all()
    bench.restarted()
    bench.clock.advance(3600)
    bench.post("b")
    bench.flush_all()
    assert bench.accounts.asked == ["t"]

    bench.clock.advance(0.001)
    bench.accounts.answers["t"] = AccountFound('"another"')
    bench.post("c")
    bench.flush_all()
    assert bench.accounts.asked == ["t", "t"]
    assert [value["customer_id"] for value in bench.backend.stored] == [
        "customer of t",
        "customer of t",
        "another",
    ]


def test_an_answer_from_the_future_is_asked_for_again(bench: Bench) -> None:
    """A clock that was set back does not make an old answer last for years."""
    bench.post("a")
    bench.flush_all()
    bench.clock.advance(-86_400)
    bench.restarted()
    bench.post("b")
    bench.flush_all()

    assert bench.accounts.asked == ["t", "t"]


def test_an_unknown_tenant_waits_and_holds_up_no_other(bench: Bench) -> None:
    """Only its own events wait, in order, until the account is there."""
    bench.accounts.answers["new"] = AccountUnknown("HTTP 404: no account")
    bench.post("n1", tenant_id="new")
    bench.post("t1")
    bench.flush_all()
    bench.post("n2", tenant_id="new", meter_id="other")
    bench.post("t2")
    bench.flush_all()
    assert bench.backend.stored_keys == ["t1", "t2"]
    # However many streams it has: once for each wait.
    assert bench.accounts.asked == ["new", "t"]

    del bench.accounts.answers["new"]
    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys == ["t1", "t2", "n1", "n2"]
    assert bench.outbox.account("new") == Account('"customer of new"', bench.clock.now(), 0)


def test_an_unknown_tenants_events_are_given_up_after_as_many_answers_as_allowed(
    bench_with: Callable[..., Bench],
) -> None:
    """The accounts API has to say so again and again, at the pace of the backoff."""
    bench = bench_with(max_attempts=4)
    bench.accounts.answers["new"] = AccountUnknown("HTTP 404: no account")
    for number in range(6):
        bench.post(f"n{number}", tenant_id="new", meter_id=f"m{number}")
    for asked in range(1, 4):
        bench.flush_all()
        assert (len(bench.accounts.asked), bench.dead) == (asked, [])
        bench.post(f"late{asked}", tenant_id="new", meter_id=f"late{asked}")
        bench.flush_all()
        assert len(bench.accounts.asked) == asked
        bench.wait()
    bench.flush_all()

    assert len(bench.accounts.asked) == 4
    assert sorted(bench.dead) == sorted(
        (key, "customer_not_found") for key in [*numbered("n", 6), "late1", "late2", "late3"]
    )
    assert {letter.detail for letter in bench.letters} == {"HTTP 404: no account"}
    assert bench.backend.requests == []


def test_a_tenant_given_up_begins_with_a_clean_slate(bench_with: Callable[..., Bench]) -> None:
    """Events posted later are not given up at once for what was answered before."""
    bench = bench_with(max_attempts=2)
    bench.accounts.answers["new"] = AccountUnknown("no")
    bench.post("n1", tenant_id="new")
    bench.flush_all()
    bench.wait()
    bench.flush_all()
    assert bench.dead == [("n1", "customer_not_found")]

    bench.post("n2", tenant_id="new")
    bench.flush_all()
    assert bench.dead == [("n1", "customer_not_found")]

    del bench.accounts.answers["new"]
    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys == ["n2"]


def test_a_replayed_event_of_an_unknown_tenant_is_asked_about_at_once(
    bench_with: Callable[..., Bench],
) -> None:
    """Whoever makes the account and replays has it delivered: nothing waits, nothing dies again."""
    bench = bench_with(max_attempts=1)
    bench.accounts.answers["t"] = AccountUnknown("no such tenant")
    bench.post("a")
    bench.flush_all()
    assert bench.dead == [("a", "customer_not_found")]
    bench.accounts.answers["t"] = AccountFound('"made by now"')
    bench.outbox.replay([letter.seq for letter in bench.letters], now=bench.clock.now())
    bench.flush_all()
    assert bench.counts == all_delivered(1)


def test_a_replayed_event_of_an_unknown_tenant_has_all_its_answers_again(
    bench_with: Callable[..., Bench],
) -> None:
    """Who was given up once is given up anew only after as many answers as allowed."""
    bench = bench_with(max_attempts=3)
    bench.accounts.answers["t"] = AccountUnknown("no such tenant")
    bench.post("a")
    bench.live(3 * LONGEST, step=10)
    assert bench.dead == [("a", "customer_not_found")]
    asked = len(bench.accounts.asked)
    bench.outbox.replay([letter.seq for letter in bench.letters], now=bench.clock.now())
    while not bench.dead:
        bench.live(10, step=10)
    assert len(bench.accounts.asked) == asked + 3


def test_an_outage_of_the_accounts_api_holds_only_who_must_be_asked_about(bench: Bench) -> None:
    """Tenants with a fresh answer are delivered; the others wait, and nobody is given up."""
    bench.post("known1")
    bench.flush_all()
    bench.accounts.answers |= {"t": DOWN, "x": DOWN, "y": DOWN}
    bench.post("x1", tenant_id="x")
    bench.post("y1", tenant_id="y")
    bench.post("known2")
    bench.flush_all()
    assert bench.backend.stored_keys == ["known1", "known2"]
    # One failure is enough to know: the next tenant is not asked about.
    assert bench.accounts.asked == ["t", "x"]

    for _ in range(30):
        bench.wait()
        bench.flush_all()
    assert bench.outbox.link("accounts").failures == 31
    assert bench.counts == {"pending": 2, "dead": 0, "delivered": 2, "refused": 0}
    assert bench.events_link.failures == 0

    bench.accounts.answers.clear()
    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys[:2] == ["known1", "known2"]
    assert sorted(bench.backend.stored_keys[2:]) == ["x1", "y1"]
    assert bench.outbox.link("accounts").failures == 0


@pytest.mark.parametrize("backlog", [3, 3000])
def test_a_tenant_that_cannot_be_asked_about_does_not_keep_others_from_being_asked(
    bench: Bench, backlog: int
) -> None:
    """Where the accounts API fails for one tenant only, it is asked about the others first."""
    bench.accounts.answers["bad"] = DOWN
    bench.post(*numbered("x", backlog), tenant_id="bad")
    bench.post("a", tenant_id="a")
    bench.post("b", tenant_id="b")
    bench.live(3 * BASE)
    assert bench.backend.stored_keys == ["a", "b"]

    bench.live(2 * LONGEST)
    bench.post("c", tenant_id="c")
    bench.live(LONGEST)
    assert bench.backend.stored_keys == ["a", "b", "c"]


def test_retry_after_of_the_accounts_api_is_honoured(bench: Bench) -> None:
    """It is not asked again before it wants to be, not even by a new process."""
    bench.accounts.answers["t"] = Unavailable("HTTP 429", retry_after_seconds=1800)
    bench.post("a")
    bench.flush_all()
    bench.clock.advance(1799)
    bench.restarted()
    bench.post("b", tenant_id="t2")
    bench.flush_all()
    assert bench.accounts.asked == ["t"]

    bench.accounts.answers.clear()
    bench.clock.advance(1.001)
    bench.flush_all()
    assert sorted(bench.backend.stored_keys) == ["a", "b"]


def test_refused_events_keep_their_place_while_the_accounts_api_is_away(bench: Bench) -> None:
    """What the backend refused is not put before its stream for want of a customer."""
    bench.post("bad")
    bench.backend.otherwise = refuse_where(named("bad"))
    bench.flush_all()
    bench.clock.advance(3601)
    bench.accounts.answers["t"] = DOWN
    bench.flush_all()
    assert bench.counts == {"pending": 1, "dead": 0, "delivered": 0, "refused": 1}

    bench.accounts.answers.clear()
    bench.post("good")
    bench.wait()
    bench.flush_all()
    assert bench.dead == [("bad", "rejected")]


def test_an_interrupted_question_changes_nothing(bench: Bench) -> None:
    """Where we broke off the look-up ourselves, nobody waits for it and nothing is written."""
    bench.accounts.interrupt()
    bench.post("a")
    bench.flush()

    assert bench.backend.requests == []
    assert bench.outbox.link("accounts") == Link("accounts")
    assert bench.outbox.account("t") is None
    assert bench.outbox.next_due_at() is None
