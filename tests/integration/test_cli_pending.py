"""`meter-lib pending`: each event that waits is shown, with what it waits for; nothing changes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.outbox import Burial, Deferral, Link, Selector, Settlement, Unanswered
from tests.integration.operating import EVENT, TIME

if TYPE_CHECKING:
    from pathlib import Path

    from meter_lib.outbox import DueEvent, Outbox
    from tests.integration.operating import Operator


def due(outbox: Outbox) -> dict[str, DueEvent]:
    """Return what is due, by its key."""
    events = outbox.due(now=TIME, limit=10_000, max_bytes=10**9)
    return {event.idempotency_key: event for event in events}


def test_a_pending_event_has_the_fields_of_a_dead_letter_and_its_state(operator: Operator) -> None:
    """What scripts rely on: all that a dead letter tells but the end, and what it waits for."""
    operator.post("k", metadata={"a": "ü\x1b"})
    operator.bury("dead")
    (dead,) = operator.run("dead-letters", "list", "--json").json
    listed = operator.run("pending", "list", "--json").json
    assert listed == [
        EVENT
        | {
            "idempotency_key": "k",
            "start_time": None,
            "end_time": None,
            "event_time": TIME,
            "metadata": {"a": "ü\x1b"},
            "seq": 1,
            "customer_id": None,
            "attempts": 0,
            "replays": 0,
            "state": "pending",
            "next_attempt_at": None,
        }
    ]
    assert dead.keys() - {"reason", "detail", "dead_at"} <= listed[0].keys()
    assert operator.run("pending", "show", "k", "--json").json == listed[0]


def test_each_state_tells_what_an_event_waits_for(operator: Operator) -> None:
    """Fresh, sent without an answer, set aside until an instant, refused by itself or not yet."""
    for number, key in enumerate(("fresh", "sent", "deferred", "behind", "suspected", "refused")):
        operator.post(key, tenant_id="one" if key == "behind" else f"t{number}")
    operator.post("first-of-one", tenant_id="one")
    with operator.opened() as outbox:
        events = due(outbox)
        outbox.begin([Unanswered("r", '"c"', [events["sent"]])])
        outbox.settle(
            Settlement(
                deferred=[
                    Deferral(events["deferred"], TIME + 5_000, counts=True),
                    Deferral(events["first-of-one"], TIME + 9_000, counts=False),
                ],
                refused=[events["suspected"]],
                refused_alone=[events["refused"]],
            ),
            now=TIME,
        )
    listed: list[dict[str, Any]] = operator.run("pending", "list", "--json").json
    assert [(e["idempotency_key"], e["state"], e["next_attempt_at"]) for e in listed] == [
        ("fresh", "pending", None),
        ("sent", "sent", None),
        ("deferred", "deferred", TIME + 5_000),
        ("behind", "pending", TIME + 9_000),
        ("suspected", "suspected", None),
        ("refused", "refused", None),
        ("first-of-one", "deferred", TIME + 9_000),
    ]
    assert [e["attempts"] for e in listed] == [0, 0, 1, 0, 0, 0, 0]
    for key in ("fresh", "sent", "deferred", "suspected", "refused"):
        shown = operator.run("pending", "show", key)
        assert (shown.code, "which means" in shown.stdout) == (0, True)


def test_a_paused_link_holds_up_every_event(operator: Operator) -> None:
    """While the backend is down, the next attempt of an event is that of the link, if not later."""
    operator.post("k")
    with operator.opened() as outbox:
        outbox.set_link(Link("events", 1, TIME, TIME + 7_000))
    (event,) = operator.run("pending", "list", "--json").json
    assert event["next_attempt_at"] == TIME + 7_000


def test_a_replayed_event_is_pending_and_counts_its_replays(operator: Operator) -> None:
    """Whoever looks sees that an event was dead before, and how often."""
    operator.bury("k")
    operator.run("dead-letters", "replay", "k")
    with operator.opened() as outbox:
        (event,) = due(outbox).values()
        outbox.settle(Settlement(buried=[Burial(event, "rejected", "")]), now=TIME)
    (letter,) = operator.run("dead-letters", "list", "--json").json
    assert letter["replays"] == 1
    operator.run("dead-letters", "replay", "k")
    (event,) = operator.run("pending", "list", "--json").json
    assert (event["idempotency_key"], event["replays"]) == ("k", 2)


@pytest.mark.parametrize(
    ("selectors", "keys"),
    [
        ((), ["a", "b", "c"]),
        (("--all",), ["a", "b", "c"]),
        (("c", "a"), ["a", "c"]),
        (("--tenant", "t2"), ["c"]),
        (("--device", "d"), ["a", "b", "c"]),
        (("--meter", "other"), []),
        (("--since", str(TIME + 1)), ["b"]),
        (("--until", str(TIME + 1)), ["a", "c"]),
        (("--limit", "2"), ["a", "b"]),
    ],
)
def test_the_selectors_are_those_of_dead_letters(
    selectors: tuple[str, ...], keys: list[str], operator: Operator
) -> None:
    """List and export take the same events, the oldest first."""
    operator.post("a", "b")
    operator.post("c", tenant_id="t2")
    operator.bury("dead")
    listed = operator.run("pending", "list", "--json", *selectors)
    exported = operator.run("pending", "export", "-", *selectors)
    assert [event["idempotency_key"] for event in listed.json] == keys
    assert (exported.code, exported.lines) == (0, listed.json)


def test_an_export_is_a_private_new_file(operator: Operator, tmp_path: Path) -> None:
    """Nothing is overwritten, and nothing leaves the outbox."""
    operator.post("a", "b")
    ended = operator.run("pending", "export", "out.jsonl", "--json")
    assert (ended.code, ended.json) == (0, {"exported": 2})
    file = tmp_path / "out.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().splitlines()) == 2
    again = operator.run("pending", "export", "out.jsonl")
    assert (again.code, "out.jsonl: File exists" in again.stderr) == (2, True)
    assert operator.keys("pending") == ["a", "b"]


@pytest.mark.parametrize("command", [("list",), ("show",), ("export", "-")])
def test_an_unknown_key_ends_with_1(command: tuple[str, ...], operator: Operator) -> None:
    """A slip is noticed; a dead letter is not pending."""
    operator.bury("dead")
    ended = operator.run("pending", *command, "dead")
    assert (ended.code, "there is no pending event 'dead'" in ended.stderr) == (1, True)


@pytest.mark.parametrize("command", [("list",), ("show", "k"), ("export", "out")])
def test_a_missing_outbox_is_said_and_not_made(
    command: tuple[str, ...], operator: Operator, tmp_path: Path
) -> None:
    """Looking makes no outbox, and leaves no file behind."""
    ended = operator.run("pending", *command)
    assert (ended.code, "outbox.db" in ended.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_table_shows_the_first_50_and_says_how_many_more(operator: Operator) -> None:
    """A screen is not flooded."""
    operator.post(*[f"k{number}" for number in range(1_203)])
    table = operator.run("pending", "list").stdout.splitlines()
    assert (len(table), table[-1]) == (52, "and 1,153 more pending events: --json lists all")
    assert (table[1][:3], table[50][:4]) == ("k0 ", "k49 ")
    assert len(operator.keys("pending")) == 1_203


def test_an_empty_outbox_has_nothing_pending(operator: Operator) -> None:
    """That is good news, not an error."""
    operator.bury("dead")
    assert operator.run("pending", "list") == (0, "nothing is pending\n", "")
    assert operator.run("pending", "list", "--json") == (0, "[]\n", "")


def test_the_state_of_one_event_is_known_by_its_number_and_key(operator: Operator) -> None:
    """Whoever waits for an event learns where it is, and that it has left."""
    operator.post("a", "b")
    operator.bury("c")
    with operator.opened() as outbox:
        events = due(outbox)
        outbox.settle(Settlement(refused_alone=[events["a"]], delivered=[events["b"]]), now=TIME)
        (letter,) = outbox.dead_letters(Selector())
        states = [outbox.state_of(seq, key) for seq, key in ((1, "a"), (2, "b"), (1, "other"))]
        assert states == ["refused", None, None]
        assert outbox.state_of(letter.seq, "c") == "dead"
