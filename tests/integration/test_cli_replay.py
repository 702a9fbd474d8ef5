"""Replays: planned, tried with one first, paced, stopped at any point, and honest about risks."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.clock import SystemClock
from meter_lib.outbox import Burial, Settlement, Unanswered
from tests.integration.operating import TIME
from tests.promises.delivering import Device, eventually

if TYPE_CHECKING:
    from tests.integration.operating import Operator

REPLAY = ("dead-letters", "replay")


def worker_runs(device: Device, operator: Operator, **settings: Any) -> None:
    """Start a worker and wait until it holds the outbox."""
    device.start_worker(**settings)

    def holds() -> bool:
        with operator.opened() as outbox:
            return outbox.holder() is not None

    eventually(holds)


def arrived(device: Device) -> list[str]:
    """Return the keys that the backend has, in the order they came."""
    return [record.value["idempotency_key"] for record in device.sandbox.records]


def test_a_dry_run_tells_the_plan_and_changes_nothing(operator: Operator) -> None:
    """How many of each reason there are is known before anything is done."""
    operator.bury("a", "b")
    operator.bury("c", reason="too_large")
    ended = operator.run(*REPLAY, "--all", "--dry-run")
    assert ended == (0, "3 dead letters would be replayed\n  2 rejected\n  1 too_large\n", "")
    assert operator.keys() == ["a", "b", "c"]


def test_without_a_worker_all_become_pending_at_once(operator: Operator) -> None:
    """Nobody would tell what becomes of a canary: that is said, and nobody waits."""
    operator.bury("a", "b")
    ended = operator.run(*REPLAY, "--all", "--yes")
    assert (ended.code, ended.stdout) == (0, "2 dead letters replayed\n")
    assert "no worker is running" in ended.stderr
    assert operator.keys("pending") == ["a", "b"]
    operator.bury("c", "d")
    assert operator.run(*REPLAY, "--all", "--no-canary") == (0, "2 dead letters replayed\n", "")


def test_the_others_follow_once_the_canary_is_delivered(operator: Operator, device: Device) -> None:
    """The oldest goes alone; when the backend has it, so do the others, under their keys."""
    operator.bury("a", "b", "c")
    worker_runs(device, operator)
    ended = operator.run(*REPLAY, "--all")
    assert (ended.code, ended.stdout) == (0, "3 dead letters replayed\n")
    assert "the canary a is delivered" in ended.stderr
    device.drained()
    assert (arrived(device), operator.keys()) == (["a", "b", "c"], [])


def test_a_single_dead_letter_needs_no_canary(operator: Operator, device: Device) -> None:
    """There is nobody it could go ahead of, so nobody waits for it."""
    device.sandbox.fault("down")
    operator.bury("a")
    worker_runs(device, operator)
    assert operator.run(*REPLAY, "--all") == (0, "1 dead letter replayed\n", "")


def test_a_canary_that_is_refused_again_stops_the_replay(
    operator: Operator, device: Device
) -> None:
    """The cause is not gone: one event has been tried for nothing, not all of them."""
    device.sandbox.fault("reject_records", match={"idempotency_key": "canary"})
    operator.bury("canary", "b", "c")
    worker_runs(device, operator)
    ended = operator.run(*REPLAY, "--all")
    assert (ended.code, ended.stdout) == (1, "1 dead letter replayed, 2 not\n")
    assert "refused the canary canary again" in ended.stderr
    assert operator.keys() == ["b", "c"]


def test_a_canary_that_dies_again_stops_the_replay(operator: Operator, device: Device) -> None:
    """Where others prove at once that it is the event, its reason is told."""
    device.sandbox.fault("refuse", api="accounts", status=404)
    operator.bury("canary", "b", reason="customer_not_found")
    worker_runs(device, operator, max_attempts=1)
    ended = operator.run(*REPLAY, "--all")
    assert (ended.code, ended.stdout) == (1, "1 dead letter replayed, 1 not\n")
    assert "is a dead letter again: customer_not_found" in ended.stderr
    letters = operator.run("dead-letters", "list", "--json").json
    assert [(letter["idempotency_key"], letter["replays"]) for letter in letters] == [
        ("canary", 1),
        ("b", 0),
    ]


def test_nobody_waits_for_a_canary_for_ever(operator: Operator, device: Device) -> None:
    """During an outage the canary stays pending, the others stay dead letters, a script goes on."""
    device.sandbox.fault("down")
    operator.bury("a", "b")
    worker_runs(device, operator)
    ended = operator.run(*REPLAY, "--all", "--canary-timeout", "0.2")
    assert (ended.code, ended.stdout) == (1, "1 dead letter replayed, 1 not\n")
    assert "the canary a is not delivered within 0.2 s" in ended.stderr
    assert (operator.keys("pending"), operator.keys()) == (["a"], ["b"])


def test_ctrl_c_while_the_canary_is_waited_for_keeps_what_is_done(
    operator: Operator, device: Device
) -> None:
    """The canary stays replayed; the same command does the rest later."""
    device.sandbox.fault("down")
    operator.bury("a", "b")
    worker_runs(device, operator)
    process = operator.process(*REPLAY, "--all", "--yes")
    eventually(lambda: operator.keys() == ["b"])
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (1, "")
    assert "1 dead letter replayed until then" in stderr
    assert "Traceback" not in stderr
    assert operator.run(*REPLAY, "--all").stdout == "1 dead letter replayed\n"


def test_ctrl_c_in_the_middle_tells_how_many_were_replayed(operator: Operator) -> None:
    """The count is exact, whenever it comes, and the rest is still dead."""
    operator.bury(*[f"k{number}" for number in range(200)])
    process = operator.process(*REPLAY, "--all", "--yes", "--rate", "40")
    eventually(lambda: len(operator.keys()) < 190)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    replayed = len(operator.keys("pending"))
    assert 10 < replayed < 200
    assert process.returncode == 1
    assert f"{replayed} dead letters replayed until then" in stderr
    assert len(operator.keys()) == 200 - replayed
    ended = operator.run(*REPLAY, "--all")
    assert ended.stdout == f"{200 - replayed} dead letters replayed\n"


# -- what may be billed twice ---------------------------------------------------------------


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> int:
    """The backend knows keys for an hour; return an instant that is longer ago."""
    monkeypatch.setenv("METER_DEDUPE_WINDOW", "3600")
    return SystemClock().now() - 3_601_000


def test_an_unknown_outcome_beyond_the_window_asks_for_the_risk(
    operator: Operator, window: int
) -> None:
    """The backend may have it and not know its key any more: nothing is replayed unasked."""
    operator.bury("a", died_at=window)
    operator.bury("b", "c", reason="attempts_exhausted", died_at=window)
    ended = operator.run(*REPLAY, "--all", "--yes")
    assert (ended.code, ended.stdout) == (2, "")
    assert "2 dead letters (attempts_exhausted) may be stored" in ended.stderr
    assert "--accept-duplicate-risk" in ended.stderr
    assert operator.keys() == ["a", "b", "c"]
    dry = operator.run(*REPLAY, "--all", "--dry-run")
    assert (dry.code, "may bill twice" in dry.stdout) == (0, True)
    assert operator.run(*REPLAY, "--all", "--yes", "--accept-duplicate-risk").code == 0
    assert operator.keys() == []


def test_known_outcomes_and_fresh_ones_are_no_risk(operator: Operator, window: int) -> None:
    """What was refused for good is not stored, and within the window a key is known."""
    for reason in ("rejected", "too_large", "customer_not_found", "key_conflict"):
        operator.bury(reason, reason=reason, died_at=window)
    operator.bury("fresh", reason="attempts_exhausted", died_at=window + 60_000)
    assert operator.run(*REPLAY, "--all", "--yes").code == 0


@pytest.mark.parametrize("reason", ["damaged", "of-a-later-version"])
def test_what_nobody_knows_is_a_risk(reason: str, operator: Operator, window: int) -> None:
    """Where nothing is known of an outcome, the worst is believed."""
    operator.bury("a", reason=reason, died_at=window)
    assert operator.run(*REPLAY, "--all", "--yes").code == 2


def test_a_request_without_an_answer_is_a_risk_whatever_the_reason(
    operator: Operator, window: int
) -> None:
    """It was also sent in a request that nobody answered: the backend may have it of that."""
    operator.post("a")
    with operator.opened() as outbox:
        (event,) = outbox.due(now=TIME, limit=1, max_bytes=1)
        outbox.begin([Unanswered("r", '"c"', [event])])
        outbox.settle(Settlement(buried=[Burial(event, "rejected", "")]), now=window)
    assert operator.run(*REPLAY, "--all", "--yes").code == 2


def test_a_clock_that_was_set_back_is_no_proof_of_freshness(
    operator: Operator, window: int
) -> None:
    """A dead letter of the future says nothing of how long ago it was."""
    operator.bury("a", reason="attempts_exhausted", died_at=window + 10**9)
    assert operator.run(*REPLAY, "--all", "--yes").code == 2


def test_without_a_window_nothing_is_claimed(operator: Operator) -> None:
    """Nobody has said how long the backend knows keys: replays go on as ever."""
    operator.bury("a", reason="attempts_exhausted", died_at=TIME - 10**10)
    assert operator.run(*REPLAY, "--all", "--yes").code == 0


def test_the_rate_holds_behind_the_canary(operator: Operator, device: Device) -> None:
    """A backend that has just come back gets one event, then as many a second as asked for."""
    operator.bury(*[f"k{number}" for number in range(12)])
    worker_runs(device, operator)
    begun_at = time.monotonic()
    assert operator.run(*REPLAY, "--all", "--rate", "20").code == 0
    assert time.monotonic() - begun_at > 0.4
    device.drained()
    assert sorted(arrived(device)) == sorted(f"k{number}" for number in range(12))
