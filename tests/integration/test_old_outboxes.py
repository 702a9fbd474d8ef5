"""Outboxes that earlier versions left behind: each opens, is upgraded, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import meter_migrations
from meter_lib import MeterClient, Settings
from meter_lib._sqlite import SqliteOutbox
from meter_lib.outbox import Selector
from meter_worker import BackgroundFlusher
from meter_worker.sandbox import Sandbox

CORPUS = Path(__file__).parent.parent / "data" / "outboxes"
SCHEMAS = sorted(path.stem for path in CORPUS.glob("*.db"))
MIB = 1024 * 1024
NOW = 1_770_000_000_000


class Old(NamedTuple):
    """A copy of an old outbox, and what is in it."""

    path: str
    schema: int
    outbox_id: str
    events: list[dict[str, Any]]

    def keys(self, *states: str) -> list[str]:
        """The keys of events in these states, in their order."""
        return [one["idempotency_key"] for one in self.events if one["state"] in states]

    def opened(self) -> contextlib.closing[SqliteOutbox]:
        """The outbox, opened by this version."""
        return contextlib.closing(SqliteOutbox(self.path, max_bytes=64 * MIB))


def copied(schema: str, folder: Path) -> Old:
    """Copy an outbox with its log: opening one changes it."""
    path = folder / "outbox.db"
    for ending in ("", "-wal"):
        shutil.copyfile(CORPUS / f"{schema}.db{ending}", f"{path}{ending}")
    return Old(str(path), int(schema), **json.loads((CORPUS / f"{schema}.json").read_text()))


@pytest.fixture(params=SCHEMAS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    """Each of them."""
    return copied(request.param, tmp_path)


def check_books(old: Old, *, accepted: int = 24) -> None:
    """See to it that an audit finds nothing wrong, and as many events as there were."""
    with old.opened() as outbox, outbox.audit(progress=lambda _done, _of: None) as audit:
        assert (audit.problems, audit.accepted.events) == ([], accepted)


def test_every_schema_that_was_ever_the_newest_is_here() -> None:
    """Of each schema up to the one before the current there is an outbox, with a hot log."""
    assert SCHEMAS[: meter_migrations.LATEST - 1] == [
        f"{number:04}" for number in range(1, meter_migrations.LATEST)
    ]
    for schema in SCHEMAS:
        log = (CORPUS / f"{schema}.db-wal").stat().st_size
        assert log > 10_000
        assert (CORPUS / f"{schema}.db").stat().st_size + log < 100_000


def test_an_old_outbox_is_what_it_says(old: Old) -> None:
    """It was made by the schema that it is named after, and half of it is in its log only."""
    connection = sqlite3.connect(old.path)
    assert meter_migrations.schema_version(connection) == old.schema
    assert connection.execute("SELECT max(seq) FROM events").fetchone() == (24,)
    connection.close()
    folder = Path(old.path).parent / "without-log"
    folder.mkdir()
    shutil.copyfile(CORPUS / f"{old.schema:04}.db", folder / "outbox.db")
    connection = sqlite3.connect(folder / "outbox.db")
    assert connection.execute("SELECT max(seq) FROM events").fetchone() == (12,)
    connection.close()


def test_an_upgrade_keeps_every_event(old: Old) -> None:
    """Each event is there once, in its place, under its key, with what was said of it."""
    with old.opened() as outbox:
        outbox.append([], now=NOW)
        waiting = list(outbox.pending_events(Selector()))
        dead = list(outbox.dead_letters(Selector()))
        assert outbox.outbox_id == old.outbox_id
        status = outbox.status()
    assert status.schema_version == meter_migrations.LATEST
    assert (status.delivered, status.removed) == (
        len(old.keys("delivered")),
        len(old.keys("removed")),
    )
    for found, state in ((waiting, "pending"), (dead, "dead")):
        assert [one.idempotency_key for one in found] == old.keys(state)
        for one in found:
            event = old.events[one.seq - 1]
            assert event["idempotency_key"] == one.idempotency_key
            assert event["event_time"] == one.event_time
            said = event["payload"]
            assert said == json.loads(one.payload)
            assert [said["tenant_id"], said["device_id"]] == [one.tenant_id, one.device_id]
    assert {letter.reason for letter in dead} == {"rejected"}
    check_books(old)


def test_an_old_outbox_is_delivered(old: Old) -> None:
    """Each event reaches the backend once, as it was recorded, the replayed dead letters too."""
    with Sandbox() as sandbox:
        settings = Settings(
            outbox=old.path, stream_url=sandbox.url, accounts_url=sandbox.url, poll_interval=0.02
        )
        with old.opened() as outbox:
            outbox.replay([letter.seq for letter in outbox.dead_letters(Selector())], now=NOW)
        with BackgroundFlusher(settings=settings) as flusher:
            assert flusher.flush(timeout=30)
        records = {record.value["idempotency_key"]: record.value for record in sandbox.records}
        assert len(sandbox.records) == len(records)
    assert sorted(records) == sorted(old.keys("pending", "dead"))
    for event in old.events:
        if (record := records.get(event["idempotency_key"])) is not None:
            assert event["payload"].items() <= record.items()
            assert (record["outbox_id"], record["seq"]) == (old.outbox_id, event["seq"])
            assert record["event_time"] == event["event_time"]
    check_books(old)


def test_an_old_outbox_knows_the_keys_of_callers(old: Old) -> None:
    """A key that was used before the upgrade is a duplicate after it, delivered or not."""
    own = [event for event in old.events if event["is_own_key"] and event["state"] != "removed"]
    assert {event["state"] for event in own} == {"pending", "dead", "delivered"}
    with MeterClient(old.path) as client:
        for event in own:
            said = {name: value for name, value in event["payload"].items() if name != "ai_event"}
            if said.get("start_time") is None:
                said["timestamp"] = event["event_time"]
            receipt = client.post(**said, idempotency_key=event["idempotency_key"])
            assert receipt["status"] == "duplicate"
    check_books(old)


_UPGRADE = """
import os, signal, sqlite3, sys, meter_migrations
left = int(sys.argv[2])
def die_in_time(statement):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA synchronous = FULL")
connection.set_trace_callback(die_in_time)
meter_migrations.migrate(connection)
connection.set_trace_callback(None)
"""


def test_an_upgrade_that_is_killed_leaves_a_whole_schema(tmp_path: Path) -> None:
    """At whichever statement it dies: the next one goes on from there, and no event is missing."""
    seen: set[int] = set()
    for statements in range(0, 200, 3):
        folder = tmp_path / str(statements)
        folder.mkdir()
        old = copied("0001", folder)
        ended = subprocess.run(
            [sys.executable, "-c", _UPGRADE, old.path, str(statements)], check=False
        )
        seen.add(_look(folder))
        check_books(old)
        with old.opened() as outbox:
            assert [one.idempotency_key for one in outbox.pending_events(Selector())] == (
                old.keys("pending")
            )
            assert outbox.status().schema_version == meter_migrations.LATEST
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert ended.returncode == 0
    assert seen == set(range(1, meter_migrations.LATEST + 1))


def _look(folder: Path) -> int:
    """Return which schema a file has, and see that it has that as a whole; on a copy of it."""
    look = folder / "look"
    look.mkdir()
    for ending in ("", "-wal"):
        # The last one to close it may have emptied the log.
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(folder / f"outbox.db{ending}", look / f"outbox.db{ending}")
    connection = sqlite3.connect(look / "outbox.db", isolation_level=None)
    version = meter_migrations.schema_version(connection)
    tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
    found = connection.execute(tables).fetchall()
    connection.close()
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    steps = sorted(Path(meter_migrations.__file__).parent.glob("*.sql"))[:version]
    for step in steps:
        fresh.executescript(step.read_text())
    assert found == fresh.execute(tables).fetchall()
    fresh.close()
    return version


# What the versions of each schema say to record an event, their statements prepared beforehand.
_OLD_POST = """
    INSERT INTO events (seq, stream_id, idempotency_key, event_time, recorded_at, total_usage,
                        payload)
    VALUES (1 + (SELECT max(seq) FROM events), 1, ?, 1760000000000, 1760000000000, 7, ?)
"""
_OLD_SETTLEMENT = """
    BEGIN IMMEDIATE;
    UPDATE outbox SET delivered_events = delivered_events + 1;
    UPDATE outbox SET last_seq = (SELECT max(seq) FROM events WHERE state = 'pending');
    INSERT INTO ledger (day, stream_id, delivered_events, delivered_units)
    SELECT event_time / 86400000, stream_id, 1, total_usage FROM events
    WHERE seq = (SELECT max(seq) FROM events WHERE state = 'pending')
    ON CONFLICT (day, stream_id) DO UPDATE SET delivered_events = delivered_events + 1,
        delivered_units = CAST(delivered_units + excluded.delivered_units AS TEXT);
    DELETE FROM events WHERE seq = (SELECT max(seq) FROM events WHERE state = 'pending');
    COMMIT;
"""


def test_a_program_of_the_old_version_goes_on_beside_the_new_one(old: Old) -> None:
    """It has the file open, which is upgraded under it: what it records and settles counts."""
    theirs = sqlite3.connect(old.path, isolation_level=None)
    payload = json.dumps(
        {"meter_id": "page.processed.basic", "tenant_id": "acme", "device_id": "gate/1"}
        | {"total_usage": 7}
    )
    theirs.execute(_OLD_POST, ("before", payload))
    with old.opened() as outbox:
        outbox.append([], now=NOW)
        theirs.execute(_OLD_POST, ("after-1", payload))
        theirs.execute(_OLD_POST, ("after-2", payload))
        theirs.executescript(_OLD_SETTLEMENT)
        theirs.close()
        keys = [event.idempotency_key for event in outbox.pending_events(Selector())]
        assert keys == [*old.keys("pending"), "before", "after-1"]
    check_books(old, accepted=27)
