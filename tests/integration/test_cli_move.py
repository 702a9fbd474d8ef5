"""`meter-lib move`: what an operator sees of it, and what a worker makes of the outbox after it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from meter_lib import Settings
from meter_worker import BackgroundFlusher
from meter_worker.sandbox import Sandbox
from tests.integration.moving import opened
from tests.integration.test_cli import on_a_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.operating import Operator

BALANCE = ("accepted", "pending", "dead", "delivered", "removed")


def eventually(look: Callable[[], object]) -> None:
    """Look until it is so; fail where it is not within ten seconds."""
    deadline = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def test_a_move_says_what_went_where(operator: Operator) -> None:
    """For people as a table, for programs as JSON; the old path is refused from then on."""
    operator.post("a", "b")
    operator.bury("c")
    before = operator.run("status", "--json").json
    ended = operator.run("move", "--to", "new.db", "--json")
    moved = ended.json
    assert (ended.code, ended.stderr, moved["moved"]) == (0, "", True)
    assert (moved["from"], moved["to"]) == (operator.path, os.path.abspath("new.db"))
    assert {name: moved[name] for name in BALANCE} == {name: before[name] for name in BALANCE}
    assert (moved["pending_units"], moved["dead_units"]) == (2, 1)
    assert os.path.exists(moved["kept"])
    after = operator.run("status", "--outbox", "new.db", "--json").json
    assert {name: after[name] for name in BALANCE} == {name: before[name] for name in BALANCE}
    for command in (
        ["status"],
        ["flush"],
        ["post", "--from-file", os.devnull],
        ["pending", "list"],
    ):
        refused = operator.run(*command)
        if command[0] != "post":
            assert (refused.code, refused.stdout) == (1, "")
            assert f"has moved to {moved['to']}: set METER_OUTBOX to that place" in refused.stderr
    nowhere = "http://127.0.0.1:1"
    checks = operator.run(
        "doctor", "--json", "--stream-url", nowhere, "--accounts-url", nowhere
    ).json["checks"]
    (found,) = [check for check in checks if check["name"] == "outbox"]
    assert (found["verdict"], found["remedy"]) == ("fault", "set METER_OUTBOX to the new place")
    usage = ["--tenant", "t", "--device", "d", "--meter", "m", "--usage", "1"]
    assert operator.run("post", *usage).code == 1
    assert operator.run("post", *usage, "--outbox", "new.db").code == 0
    table = operator.run("move", "--outbox", "new.db", "--to", "third.db").stdout.splitlines()
    assert [line for line in table if line.startswith(("pending", "dead letters"))] == [
        "pending          3 events, 3 units",
        "dead letters     1 event, 1 unit",
    ]


def test_a_dry_run_changes_nothing(operator: Operator) -> None:
    """It shows the same, and names what stands in the way."""
    operator.post("a")
    there = set(os.listdir())
    planned = operator.run("move", "--to", "new.db", "--dry-run", "--json")
    assert (planned.code, planned.json["moved"], planned.json["kept"]) == (0, False, None)
    assert planned.json["pending"] == 1
    assert set(os.listdir()) == there
    assert operator.keys("pending") == ["a"]
    with opened(operator.path) as outbox:
        assert outbox.try_hold()
        held = operator.run("move", "--to", "new.db", "--dry-run")
        assert (held.code, f"process {os.getpid()} delivers" in held.stderr) == (1, True)
    assert operator.run("move", "--to", "new.db").code == 0
    moved = operator.run("move", "--to", "new.db", "--dry-run")
    assert (moved.code, "has moved to" in moved.stderr) == (1, True)


def test_wrong_places_are_refused(operator: Operator) -> None:
    """Exit code 2 where the option is wrong, 1 where the outbox cannot go there."""
    assert operator.run("move").code == 2
    missing = operator.run("move", "--to", "new.db")
    assert (missing.code, "there is no outbox at" in missing.stderr) == (1, True)
    operator.post("a")
    os.symlink(operator.path, "alias.db")
    for place in (operator.path, "alias.db", "postgresql://u:a@b@h/d", ""):
        assert operator.run("move", "--to", place).code == 2
    with open("text.db", "w", encoding="utf-8") as file:
        file.write("some text" * 100)
    foreign = operator.run("move", "--to", "text.db")
    assert (foreign.code, "is there, and is no outbox" in foreign.stderr) == (1, True)
    assert operator.run("move", "--to", os.path.join("text.db", "new.db")).code == 1
    assert operator.keys("pending") == ["a"]
    with open("text.db", encoding="utf-8") as file:
        assert file.read() == "some text" * 100


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_on_a_terminal_one_is_asked_before_a_move(operator: Operator) -> None:
    """A no changes nothing and ends with 1; a yes moves, and shows how far it is."""
    operator.post(*(f"k{number}" for number in range(2500)))
    code, shown = on_a_terminal("move", "--to", "new.db", answer=b"n\n")
    assert (code, "nothing was changed" in shown) == (1, True)
    code, shown = on_a_terminal("move", "--to", "new.db", answer=b"y\n")
    assert (code, "Moving" in shown, "100%" in shown) == (0, True, True)


def test_what_was_sent_without_an_answer_goes_first_and_as_it_was(operator: Operator) -> None:
    """Delivery goes on at the new place: nothing lost, the repeated records equal, in order."""
    with Sandbox() as sandbox:

        def flusher(path: str) -> BackgroundFlusher:
            settings = Settings(
                outbox=path,
                stream_url=sandbox.url,
                accounts_url=sandbox.url,
                poll_interval=0.02,
                backoff_base=0.05,
                batch_size=2,
            )
            return BackgroundFlusher(settings=settings)

        operator.post("a", "b", "c", "d")
        sandbox.fault("drop_reply", times=1)
        sandbox.fault("down")
        first = flusher(operator.path)
        first.start()
        eventually(lambda: sandbox.count == 2)
        assert first.stop()
        # One request, or two: after a failure one of its records goes ahead as a probe.
        assert operator.run("move", "--to", "new.db", "--json").json["unanswered"] in {1, 2}
        sandbox.heal()
        second = flusher("new.db")
        second.start()
        assert second.flush()
        assert second.stop()
        records = [record.value for record in sandbox.records]
        assert [value["idempotency_key"] for value in records] == ["a", "b", "a", "b", "c", "d"]
        assert records[0:2] == records[2:4]
        assert [value["seq"] for value in records[2:]] == [1, 2, 3, 4]
        assert len({value["outbox_id"] for value in records}) == 1
    status = operator.run("status", "--outbox", "new.db", "--json").json
    assert [status[name] for name in BALANCE] == [4, 0, 0, 4, 0]


def test_a_worker_at_the_old_place_ends_and_says_where_to_go(operator: Operator) -> None:
    """A supervisor starts it again, with settings that somebody has changed meanwhile."""
    operator.post("a")
    assert operator.run("move", "--to", "new.db").code == 0
    with operator.process("worker") as worker:
        _, said = worker.communicate(timeout=30)
    assert (worker.returncode, "set METER_OUTBOX to that place" in said) == (1, True)
    with operator.process("worker", "--no-wait", METER_LOG_FORMAT="json") as worker:
        _, said = worker.communicate(timeout=30)
    assert (worker.returncode, "Traceback" in said) == (1, False)
    assert json.loads(operator.run("pending", "list", "--outbox", "new.db", "--json").stdout)
