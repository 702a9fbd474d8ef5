from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.errors import OutboxUnavailable
from meter_worker.backend import AccountFound, Answered, Refused, Retriable
from tests.fakes import reject_where, values
from tests.unit.flusher_bench import LATE, named, numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.flusher_bench import Bench


def fail_once(monkeypatch: pytest.MonkeyPatch, bench: Bench, name: str, *, after: int = 0) -> None:
    """Let the disk fail the next time that the outbox is to do this, or `after` so many times."""
    works = getattr(bench.outbox, name)
    left = [None] * after

    def fails(*arguments: Any, **others: Any) -> Any:
        if left:
            left.pop()
            return works(*arguments, **others)
        monkeypatch.setattr(bench.outbox, name, works)
        raise OutboxUnavailable("the disk fails")

    monkeypatch.setattr(bench.outbox, name, fails)


def test_a_question_that_was_begun_is_asked_though_the_outbox_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the outbox fail half-way through a start, no question is left open for ever."""
    bench.post("a")
    bench.flush()
    bench.post("b")
    bench.post("c", tenant_id="u")
    fail_once(monkeypatch, bench, "begin")
    for call in bench.flusher.start():
        bench.flusher.finish(call, call.make())
    bench.flush_all()
    assert bench.backend.stored_keys == ["a", "b", "c"]


def test_what_a_failing_outbox_could_not_settle_goes_again_as_it_was(
    bench_with: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose answer could not be written is sent again, with the same customer."""
    bench = bench_with(account_ttl=1)
    bench.post(*numbered("e", 3))
    [question] = bench.flusher.start()
    bench.flusher.finish(question, question.make())
    [call] = bench.flusher.start()
    bench.backend.script(reject_where(named("e1")))
    answer = call.make()
    fail_once(monkeypatch, bench, "settle")
    with pytest.raises(OutboxUnavailable):
        bench.flusher.finish(call, answer)
    bench.accounts.answers["t"] = AccountFound(json.dumps("another"))
    bench.clock.advance(10)
    bench.post("later")
    bench.flush_all()
    assert bench.backend.sent[:2] == [numbered("e", 3), ["e1"]]
    assert {value["customer_id"] for value in values(bench.backend.requests[1])} == {
        "customer of t"
    }


def test_what_was_refused_in_company_keeps_its_customer_over_a_restart(
    bench_with: Callable[..., Bench],
) -> None:
    """An event is never sent with another customer than before, whoever asks next."""
    bench = bench_with(account_ttl=1)
    bench.post(*numbered("e", 4))
    [question] = bench.flusher.start()
    bench.flusher.finish(question, question.make())
    bench.backend.script(Refused("rejected", "no"))
    [call] = bench.flusher.start()
    bench.flusher.finish(call, call.make())
    bench.restarted()
    bench.accounts.answers["t"] = AccountFound(json.dumps("another"))
    bench.clock.advance(10)
    bench.flush_all()
    assert sorted(bench.backend.stored_keys) == numbered("e", 4)
    assert {value["customer_id"] for value in bench.backend.stored} == {"customer of t"}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("after", range(3))
def test_a_stream_that_could_be_set_aside_in_part_only_keeps_its_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, after: int, *, restarts: bool
) -> None:
    """Where the disk fails while parts of a stream are put back, the first of them go first."""
    bench.post(*numbered("e", 8))
    bench.backend.script(LATE, Answered([Retriable("busy")]))
    bench.flush_all()
    bench.wait()
    [call] = bench.flusher.start()
    answer = call.make()
    fail_once(monkeypatch, bench, "queue", after=after)
    with contextlib.suppress(OutboxUnavailable):
        bench.flusher.finish(call, answer)
    if restarts:
        bench.restarted()
    for _ in range(3):
        bench.wait()
        bench.flush_all()
    assert bench.backend.stored_keys == numbered("e", 8)
