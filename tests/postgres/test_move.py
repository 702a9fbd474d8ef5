"""An outbox moves to a server and away from one: whole, once, and whatever ends the mover."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from meter_lib import (
    KeyConflict,
    MeterClient,
    OutboxFull,
    OutboxHeld,
    OutboxMoved,
    OutboxUnavailable,
    Settings,
)
from meter_lib._postgres.contents import rows_of
from meter_lib._postgres.filling import COLUMNS, LEFT_BEHIND
from meter_lib._postgres.moved import TABLES
from meter_lib._sqlite.arriving import SqliteArriving
from meter_lib.moving import move
from meter_lib.opening import open_arriving, open_leaving
from tests.durability.crashing import FACTOR
from tests.integration.moving import (
    EVENT,
    POSTING,
    TIME,
    everything_in,
    fill,
    mover_killed_before,
    opened,
    post,
    run_move,
    seen,
    sent_again,
)
from tests.promises.delivering import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from psycopg.rows import TupleRow

    from tests.postgres.server import PostgresServer
    from tests.promises.delivering import Device

# Every so many lines; the torture takes each.
_STEP = 4 if FACTOR == 1 else 1
# Instants that are waited for are brought onto another clock.
_WAITS = {"held_until", "next_attempt_at", "ask_again_at"}

_Table = set[tuple[tuple[str, object], ...]]


def forget_moves(postgres_server: PostgresServer) -> None:
    """Leave nothing of earlier moves on the server."""
    postgres_server.clear()
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        left = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'meter\\_lib\\__%'"
        ).fetchall()
        for (name,) in left:
            connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


@pytest.fixture
def place(tmp_path: Path, postgres_server: PostgresServer) -> str:
    """A file with an outbox in which everything has happened."""
    forget_moves(postgres_server)
    source = str(tmp_path / "old" / "outbox.db")
    fill(source)
    return source


def in_file(path: str) -> dict[str, _Table]:
    """All that goes along of the rows of a file."""
    return {
        table: _comparable(table, [str(name) for name in columns], rows)
        for table, (columns, *rows) in everything_in(path).items()
    }


def on_server(url: str) -> dict[str, _Table]:
    """All rows of an outbox on a server, as a file would have them."""
    found: dict[str, _Table] = {}
    with psycopg.connect(url) as connection:
        for table, columns, rows in rows_of(connection.cursor()):
            found.setdefault(table, set()).update(_comparable(table, columns, rows))
    return found


def _comparable(table: str, columns: Any, rows: Any) -> _Table:
    taken = COLUMNS[table] - _WAITS - {"clock"}
    return {
        tuple(
            sorted(
                # A file may leave out the seq that its events show.
                (name, value if isinstance(value, bytes) else str(value))
                for name, value in zip(columns, row, strict=True)
                if name in taken and name != "last_seq"
            )
        )
        for row in rows
    }


def killed_before(line: int, source: str, destination: str, url: str) -> bool:
    """Do as `mover_killed_before`; the server has noticed then that it is gone."""
    was_killed = mover_killed_before(line, source, destination)
    with psycopg.connect(url, autocommit=True) as looking:
        eventually(
            lambda: (
                not looking.execute(
                    """
                    SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend'
                       AND datname = current_database() AND pid <> pg_backend_pid()
                    """
                ).fetchall()
            )
        )
    return was_killed


def test_all_that_a_file_has_is_known(place: str) -> None:
    """Each column of each table goes along, or is said to be left behind."""
    for table, (columns, *_) in everything_in(place).items():
        assert set(columns) == COLUMNS[table] | LEFT_BEHIND.get(table, set())


def test_all_tables_of_the_schema_move(
    open_it: Any, connection: psycopg.Connection[TupleRow]
) -> None:
    """None is left where the next outbox would find it."""
    open_it().status()
    names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'meter_lib'")
    assert {name for (name,) in names} == {*TABLES, "migrations", "moved"}


def test_everything_goes_to_the_server_row_by_row(place: str, postgres_url: str) -> None:
    """Keys, numbers, frozen content, doubts, dead letters, ledger, remembered keys."""
    before, again = in_file(place), sent_again(place)
    moved = run_move(place, postgres_url)
    assert on_server(postgres_url) == before
    assert sent_again(postgres_url) == again
    assert [len(records) for _, records in again] == [2]
    with opened(postgres_url) as outbox:
        status = outbox.status()
        with outbox.audit(progress=lambda *_: None) as audit:
            assert audit.problems == []
    contents = moved.contents
    assert (status.accepted, status.pending, status.dead, status.delivered, status.removed) == (
        contents.accepted,
        contents.pending,
        contents.dead,
        contents.delivered,
        contents.removed,
    )
    assert contents.ledger_units == 2 * (2**63 - 1)
    assert seen(place) is None


def test_numbers_and_streams_go_on_at_the_server(place: str, postgres_url: str) -> None:
    """What is recorded next is behind what was there, in streams old and new."""
    last = everything_in(place)["events"][-1][0]
    run_move(place, postgres_url)
    post(postgres_url, "next")
    post(postgres_url, "of-a-new-stream", device_id="d-2")
    before = seen(postgres_url)
    assert before is not None
    assert before.keys[-2:] == ["next", "of-a-new-stream"]
    assert before.accepted == int(str(last)) + 2
    with opened(postgres_url) as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert audit.problems == []


def test_there_and_back_again_nothing_has_changed(place: str, postgres_url: str) -> None:
    """Also for who looks at the file after it came home, and at what is sent again."""
    before, again = in_file(place), sent_again(place)
    run_move(place, postgres_url)
    with MeterClient(postgres_url) as client:
        known = {**EVENT, "total_usage": 2**63 - 1, "timestamp": TIME, "idempotency_key": "sent"}
        assert client.post(**known)["status"] == "duplicate"
        run_move(postgres_url, place)
        assert in_file(place) == before
        assert sent_again(place) == again
        assert seen(postgres_url) is None
        with opened(place) as outbox, outbox.audit(progress=lambda *_: None) as audit:
            assert audit.problems == []
        with pytest.raises(OutboxMoved, match=place):
            client.post(**EVENT, total_usage=1)
        run_move(place, postgres_url)
        assert on_server(postgres_url) == before
        client.post(**EVENT, total_usage=1, idempotency_key="goes-on")
    with opened(postgres_url) as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert audit.problems == []


def test_a_new_outbox_may_be_begun_where_one_has_left(place: str, postgres_url: str) -> None:
    """Once the two tables are dropped that the error names, also for programs that were there."""
    run_move(place, postgres_url)
    with MeterClient(postgres_url) as client:
        client.post(**EVENT, total_usage=1)
        run_move(postgres_url, place)
        with pytest.raises(OutboxMoved, match="drop the tables"):
            client.post(**EVENT, total_usage=1)
        with psycopg.connect(postgres_url) as connection:
            connection.execute("DROP TABLE meter_lib.moved, meter_lib.migrations")
        client.post(**EVENT, total_usage=1, idempotency_key="anew")
    with opened(postgres_url) as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert (audit.problems, audit.pending.events) == ([], 1)


def test_between_servers(
    place: str, postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Numbers that nobody has are no hindrance there; a file refuses them and says why."""
    other = postgres_server.url("other")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS other")
        connection.execute("CREATE DATABASE other ENCODING 'UTF8' TEMPLATE template0")
        run_move(place, postgres_url)
        connection.execute("SELECT nextval('meter_lib.event_seq')")
    with pytest.raises(OutboxUnavailable, match="1 numbers were taken by posts that came to not"):
        run_move(postgres_url, str(tmp_path / "back.db"))
    before, there = on_server(postgres_url), seen(postgres_url)
    run_move(postgres_url, other)
    assert (on_server(other), seen(other), seen(postgres_url)) == (before, there, None)
    post(other, "goes-on")
    with opened(other) as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert audit.problems == []


def test_keys_are_remembered_at_the_server(place: str, postgres_url: str) -> None:
    """A post that is repeated after the move is a duplicate, with other content a conflict."""
    run_move(place, postgres_url)
    with MeterClient(postgres_url) as client:
        for key in ("delivered", "purged", "sent"):
            arguments = {**EVENT, "total_usage": 2**63 - 1, "timestamp": TIME}
            assert client.post(**arguments, idempotency_key=key)["status"] == "duplicate"
        with pytest.raises(KeyConflict):
            client.post(**EVENT, total_usage=2, idempotency_key="delivered")


def test_what_the_clock_and_other_names_say_goes_out_as_before(
    place: str, postgres_url: str
) -> None:
    """Corrected and doubtful times and the name of a former life are the same on the wire."""
    import sqlite3  # noqa: PLC0415  # the one look into a file here

    with contextlib.closing(sqlite3.connect(place)) as connection:
        connection.execute("UPDATE events SET clock = 3 WHERE seq = 8")
        connection.execute("UPDATE events SET clock = 2 WHERE seq = 9")
        connection.execute(
            "UPDATE outbox SET epoch = 2, copied_from = ?, copied_at = 1", ('[[0, 8, "was"]]',)
        )
        connection.commit()

    def due(path: str) -> list[object]:
        with opened(path) as outbox:
            return [
                event._replace(fresh=True, stream_id=0)
                for event in sorted(outbox.due(now=2**60, limit=99, max_bytes=2**30))
            ]

    before = due(place)
    run_move(place, postgres_url)
    assert due(postgres_url) == before
    run_move(postgres_url, place)
    assert due(place) == before


@pytest.mark.parametrize("is_leaving", [False, True], ids=["file-to-server", "server-to-file"])
def test_a_mover_may_be_killed_anywhere(
    tmp_path: Path, postgres_server: PostgresServer, *, is_leaving: bool
) -> None:
    """No event is lost or deliverable from both places; running it again does the rest."""
    points: set[tuple[bool, bool]] = set()
    folder = tmp_path / "filled"
    fill(str(folder / "a.db"))
    url = postgres_server.url()
    source, destination = "", ""
    for line in itertools.count(1, _STEP):
        if not source:
            forget_moves(postgres_server)
            shutil.copytree(folder, tmp_path / str(line))
            source, destination = str(tmp_path / str(line) / "a.db"), url
            if is_leaving:
                run_move(source, url)
                source, destination = url, str(tmp_path / str(line) / "b.db")
        before, again = seen(source), sent_again(source)
        assert before is not None
        was_killed = killed_before(line, source, destination, url)
        left, arrived = seen(source), seen(destination)
        points.add((bool(left and left.keys), bool(arrived and arrived.keys)))
        # One of both, or neither as long as the move is not run again.
        assert [each for each in (left, arrived) if each and each.keys] in ([before], [])
        if left is not None:
            # The next mover begins anew, with one event more.
            post(source, f"after-{line}")
            continue
        run_move(source, destination)
        assert seen(destination) == before
        assert sent_again(destination) == again
        assert seen(source) is None
        source = ""
        if not was_killed:
            break
    assert line > 60
    assert points == {(True, False), (False, False), (False, True)}


def keys_at(place: str) -> list[str] | None:
    """What is pending there, in its order; a server that was killed skips some numbers."""
    there = seen(place)
    return there and there.keys


class _LastWish(SqliteArriving):
    """A file that is sealed in the moment in which the server dies."""

    def __init__(self, path: str, server: PostgresServer) -> None:
        super().__init__(path, max_bytes=Settings().max_bytes)
        self._server = server

    def seal(self, outbox_id: str) -> None:
        super().seal(outbox_id)
        self._server.kill()


def test_the_server_may_be_killed_before_an_outbox_has_come(
    place: str, postgres_url: str, postgres_server: PostgresServer
) -> None:
    """What was sealed is there when the server is; run again, the move comes to its end."""
    before = keys_at(place)
    with (
        contextlib.closing(open_leaving(Settings(outbox=place))) as leaving,
        contextlib.closing(open_arriving(Settings(outbox=postgres_url))) as arriving,
    ):
        with leaving.alone():
            outbox_id = leaving.contents().outbox_id
            arriving.fill(leaving.rows())
            arriving.seal(outbox_id)
            leaving.leave(arriving.location, outbox_id)
        postgres_server.kill()
        with pytest.raises(OutboxUnavailable):
            arriving.open(outbox_id)
    postgres_server.start()
    assert keys_at(postgres_url) is None
    assert run_move(place, postgres_url).was_finished
    assert keys_at(postgres_url) == before


def test_the_server_may_be_killed_before_an_outbox_has_left(
    place: str, postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """It is where it was, and in use, when the server is back; nobody can use the new place."""
    run_move(place, postgres_url)
    before = keys_at(postgres_url)
    destination = str(tmp_path / "new.db")
    with (
        contextlib.closing(open_leaving(Settings(outbox=postgres_url))) as leaving,
        contextlib.closing(_LastWish(destination, postgres_server)) as file,
        pytest.raises(OutboxUnavailable),
    ):
        move(leaving, file, progress=lambda *_: None)
    postgres_server.start()
    assert os.path.exists(f"{destination}.arrived")
    assert (keys_at(postgres_url), keys_at(destination)) == (before, None)
    post(postgres_url, "goes-on")
    with opened(postgres_url) as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert audit.problems == []


def test_programs_that_post_meanwhile_lose_nothing(
    place: str, postgres_url: str, tmp_path: Path
) -> None:
    """What was acknowledged is at the new place, in its order; what was not, is nowhere."""
    run_move(place, postgres_url)
    destination = str(tmp_path / "new.db")
    with subprocess.Popen(
        [sys.executable, "-c", POSTING, postgres_url], stdout=subprocess.PIPE, text=True
    ) as posting:
        assert posting.stdout is not None
        acknowledged = [posting.stdout.readline().strip()]
        run_move(postgres_url, destination)
        acknowledged += posting.stdout.read().splitlines()
    assert destination in acknowledged.pop()
    pending = seen(destination)
    assert pending is not None
    assert [key for key in pending.keys if key.startswith("live-")] == acknowledged


def test_a_callers_transaction_is_waited_for_or_stops_the_move(
    place: str, postgres_url: str, tmp_path: Path
) -> None:
    """What it has recorded goes along; what it would record later is told where to go."""
    run_move(place, postgres_url)
    destination = str(tmp_path / "new.db")
    with psycopg.connect(postgres_url) as mine, MeterClient(postgres_url) as client:
        client.post(**EVENT, total_usage=1, idempotency_key="with-mine", connection=mine)
        moved: list[object] = []
        moving = threading.Thread(target=lambda: moved.append(run_move(postgres_url, destination)))
        moving.start()
        with psycopg.connect(postgres_url, autocommit=True) as looking:
            eventually(
                lambda: looking.execute(
                    "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
                ).fetchall()
            )
        mine.commit()
        moving.join()
        assert len(moved) == 1
        there = seen(destination)
        assert there is not None
        assert there.keys[-1] == "with-mine"
        with pytest.raises(OutboxMoved, match="has moved to"):
            client.post(**EVENT, total_usage=1, connection=mine)
        mine.rollback()


def test_programs_that_wait_at_the_new_place_find_the_outbox(place: str, postgres_url: str) -> None:
    """What they remember of an outbox that nobody used is forgotten: streams and its name."""
    with MeterClient(postgres_url) as client, opened(postgres_url) as outbox:
        with psycopg.connect(postgres_url) as mine:
            # The first stream there gets the number that another one has in the file.
            client.post(**EVENT | {"device_id": "d-2", "total_usage": 1}, connection=mine)
            mine.rollback()
        name = outbox.outbox_id
        run_move(place, postgres_url)
        client.post(**EVENT | {"device_id": "d-2", "total_usage": 1})
        with psycopg.connect(postgres_url) as mine:
            client.post(**EVENT | {"device_id": "d-3", "total_usage": 1}, connection=mine)
        assert outbox.try_hold()
        assert outbox.outbox_id != name
        outbox.release()
        with outbox.audit(progress=lambda *_: None) as audit:
            assert audit.problems == []


def test_rights_of_an_unused_outbox_are_kept(place: str, postgres_url: str) -> None:
    """Whoever was allowed to use the tables may do so when the outbox has come."""
    with opened(postgres_url) as outbox:
        outbox.status()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS mover_app")
        connection.execute("CREATE ROLE mover_app LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA meter_lib TO mover_app")
        connection.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA meter_lib TO mover_app"
        )
        connection.execute("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA meter_lib TO mover_app")
        theirs = postgres_url.replace("//meter:", "//mover_app:")
        try:
            run_move(place, postgres_url)
            post(theirs, "theirs")
            run_move(postgres_url, place)
            with pytest.raises(OutboxMoved, match=place):
                post(theirs, "too-late")
        finally:
            connection.execute("DROP OWNED BY mover_app")
            connection.execute("DROP ROLE mover_app")


def test_a_server_with_events_of_its_own_takes_no_other_outbox(
    place: str, postgres_url: str
) -> None:
    """Both stay as they are and in use."""
    post(postgres_url, "its-own")
    before = everything_in(place)
    with pytest.raises(OutboxUnavailable, match="has accepted 1 events of its own"):
        run_move(place, postgres_url)
    assert everything_in(place) == before
    post(place, "another")
    assert seen(postgres_url) == (["its-own"], 1)


def test_another_outbox_that_is_half_way_is_not_overrun(
    place: str, postgres_url: str, tmp_path: Path
) -> None:
    """The server may hold the only usable copy of it: its own move comes first."""
    other = str(tmp_path / "other.db")
    post(other, "precious")
    settings = Settings(outbox=other)
    with (
        contextlib.closing(open_leaving(settings)) as leaving,
        contextlib.closing(open_arriving(settings.with_outbox(postgres_url))) as arriving,
        leaving.alone(),
    ):
        outbox_id = leaving.contents().outbox_id
        arriving.fill(leaving.rows())
        arriving.seal(outbox_id)
        leaving.leave(arriving.location, outbox_id)
    assert (seen(other), seen(postgres_url)) == (None, None)
    with pytest.raises(OutboxUnavailable, match="finish that move first"):
        run_move(place, postgres_url)
    with pytest.raises(OutboxUnavailable, match="run it again as it was"):
        post(postgres_url, "too-early")
    assert run_move(other, postgres_url).was_finished
    assert seen(postgres_url) == (["precious"], 1)


def test_a_flusher_keeps_its_outbox(place: str, postgres_url: str, tmp_path: Path) -> None:
    """Nothing is moved under the hands of whoever delivers from there, or would deliver."""
    with opened(postgres_url) as outbox:
        assert outbox.try_hold()
        with pytest.raises(OutboxHeld, match="another process delivers from postgresql"):
            run_move(place, postgres_url)
    run_move(place, postgres_url)
    with opened(postgres_url) as outbox:
        assert outbox.try_hold()
        with pytest.raises(OutboxHeld, match=f"process {os.getpid()} delivers from postgresql"):
            run_move(postgres_url, str(tmp_path / "new.db"))
    settings = Settings(outbox=postgres_url)
    with contextlib.closing(open_leaving(settings)) as leaving, opened(postgres_url) as outbox:
        assert leaving.try_hold()
        assert not outbox.try_hold()


def test_a_server_with_too_small_a_limit_takes_nothing(place: str, postgres_url: str) -> None:
    """An outbox never passes its limit, not by moving either; it stays where it is, in use."""
    for _ in range(60):
        post(place, None, metadata={f"k{number}": "x" * 8000 for number in range(7)})
    post(place, *(None for _ in range(200)), metadata={"k": "x" * 8000})
    before = seen(place)
    small = Settings(outbox=postgres_url, max_bytes=4 * 2**20)
    with (
        contextlib.closing(open_leaving(Settings(outbox=place))) as leaving,
        contextlib.closing(open_arriving(small)) as arriving,
        pytest.raises(OutboxFull, match="METER_MAX_BYTES"),
    ):
        move(leaving, arriving, progress=lambda *_: None)
    assert seen(place) == before
    run_move(place, postgres_url)
    assert seen(postgres_url) == before


def test_delivery_goes_on_at_the_server(place: str, postgres_url: str, fleet: Device) -> None:
    """What was sent without an answer goes first and as it was; then each once, in its order."""
    [(_, again)] = sent_again(place)
    run_move(place, postgres_url)
    worker = fleet.start_worker()
    fleet.drained()
    worker.terminate()
    assert worker.wait(10) == 0
    values = [record.value for record in fleet.sandbox.records]
    pending = ["deferred", "refused", "sent", "sent-2"]
    assert {value["idempotency_key"] for value in values} >= {*pending}
    assert len(values) == len({value["idempotency_key"] for value in values}) == 6
    assert [json.loads(record)["value"] for record in again] == [
        value for value in values if value["idempotency_key"] in {"sent", "sent-2"}
    ]
    with opened(postgres_url) as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert (audit.problems, audit.pending.events) == ([], 0)


def test_a_worker_at_a_server_that_was_left_ends_and_says_where_to_go(
    place: str, postgres_url: str, fleet: Device, tmp_path: Path
) -> None:
    """It waits while the outbox moves; then it is told, like everybody else."""
    run_move(place, postgres_url)
    destination = str(tmp_path / "new.db")
    settings = Settings(outbox=postgres_url)
    with (
        contextlib.closing(open_leaving(settings)) as leaving,
        contextlib.closing(open_arriving(settings.with_outbox(destination))) as arriving,
    ):
        assert leaving.try_hold()
        worker = fleet.start_worker()
        eventually(lambda: "outbox_held" in fleet.log or "is held by" in fleet.log)
        move(leaving, arriving, progress=lambda *_: None)
    assert worker.wait(20) == 1
    assert f"has moved to {destination}" in fleet.log
