"""An outbox moves to another place whole, once, and whatever ends the mover."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meter_lib import (
    KeyConflict,
    MeterClient,
    OutboxFull,
    OutboxHeld,
    OutboxMissing,
    OutboxMoved,
    OutboxUnavailable,
    Settings,
)
from meter_lib._sqlite.arriving import SqliteArriving
from meter_lib.moving import move
from meter_lib.opening import open_arriving, open_leaving
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

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meter_lib.moving import Contents, Rows

_READING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM events").fetchone()
print(flush=True)
input()
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    """Two places, the first with an outbox in which everything has happened."""
    source = str(tmp_path / "old" / "outbox.db")
    fill(source)
    return source, str(tmp_path / "new" / "outbox.db")


def test_everything_goes_over_row_by_row(places: tuple[str, str]) -> None:
    """Keys, numbers, frozen content, waits, doubts, dead letters, ledger, remembered keys."""
    source, destination = places
    before, again = everything_in(source), sent_again(source)
    moved = run_move(source, destination)
    assert everything_in(destination) == before == everything_in(moved.departure.kept)
    assert {table: len(rows) - 1 for table, rows in before.items()} == {
        "accounts": 1,
        "events": 7,
        "known_keys": 7,
        "ledger": 1,
        "links": 2,
        "outbox": 1,
        "streams": 2,
        "unanswered": 1,
    }
    assert sent_again(destination) == again
    assert [len(records) for _, records in again] == [2]


def test_the_books_balance_at_the_new_place_and_nothing_is_left_at_the_old(
    places: tuple[str, str],
) -> None:
    """Accepted is pending, dead, delivered and removed; units beyond 64 bits add up as well."""
    source, destination = places
    contents = run_move(source, destination).contents
    with opened(destination) as outbox:
        status = outbox.status()
    assert (status.accepted, status.pending, status.dead, status.delivered, status.removed) == (
        contents.accepted,
        contents.pending,
        contents.dead,
        contents.delivered,
        contents.removed,
    )
    assert contents.accepted == contents.pending + contents.dead + contents.ledger_events
    assert contents.ledger_units == 2 * (2**63 - 1)
    assert contents.pending_units == 3 * (2**63 - 1) + 3
    assert seen(source) is None


def test_keys_are_remembered_at_the_new_place(places: tuple[str, str]) -> None:
    """A post that is repeated after the move is a duplicate, with other content a conflict."""
    source, destination = places
    run_move(source, destination)
    with MeterClient(destination) as client:
        for key in ("delivered", "purged", "sent"):
            arguments = {**EVENT, "total_usage": 2**63 - 1, "timestamp": TIME}
            assert client.post(**arguments, idempotency_key=key)["status"] == "duplicate"
        with pytest.raises(KeyConflict):
            client.post(**EVENT, total_usage=2, idempotency_key="delivered")


def test_whoever_comes_to_the_old_place_is_told_the_new_one(places: tuple[str, str]) -> None:
    """Posts and looks are refused there, by programs that had it open as well."""
    source, destination = places
    with MeterClient(source) as client, opened(source, read_only=True) as outbox:
        client.post(**EVENT, total_usage=1)
        outbox.status()
        run_move(source, destination)
        with pytest.raises(OutboxMoved, match=destination):
            client.post(**EVENT, total_usage=1)
        with pytest.raises(OutboxMoved, match=destination):
            outbox.status()
    with pytest.raises(OutboxMoved, match=destination), MeterClient(source) as client:
        client.post(**EVENT, total_usage=1)
    with opened(source) as outbox, pytest.raises(OutboxMoved, match=destination):
        outbox.try_hold()
    assert not os.path.exists(source)


def test_a_mover_may_be_killed_anywhere(tmp_path: Path) -> None:
    """No event is lost or deliverable from both places; running it again does the rest."""
    points: set[tuple[bool, bool]] = set()
    fill(str(tmp_path / "filled" / "old.db"))
    for line in itertools.count(1):
        source = str(tmp_path / str(line) / "old.db")
        destination = str(tmp_path / str(line) / "new.db")
        shutil.copytree(tmp_path / "filled", tmp_path / str(line))
        before, content, again = seen(source), everything_in(source), sent_again(source)
        assert before is not None
        was_killed = mover_killed_before(line, source, destination)
        left, arrived = seen(source), seen(destination)
        points.add((left is not None, arrived is not None))
        # One of both, or neither as long as the move is not run again.
        assert [each for each in (left, arrived) if each is not None] in ([before], [])
        if left is not None:
            post(source, "after-all")
            content, again = everything_in(source), sent_again(source)
        run_move(source, destination)
        assert everything_in(destination) == content
        assert sent_again(destination) == again
        assert seen(source) is None
        if not was_killed:
            break
    assert line > 60
    assert points == {(True, False), (False, False), (False, True)}


def test_programs_that_post_meanwhile_lose_nothing(places: tuple[str, str]) -> None:
    """What was acknowledged is at the new place, in its order; what was not, is nowhere."""
    source, destination = places
    with subprocess.Popen(
        [sys.executable, "-c", POSTING, source], stdout=subprocess.PIPE, text=True
    ) as posting:
        assert posting.stdout is not None
        acknowledged = [posting.stdout.readline().strip()]
        run_move(source, destination)
        acknowledged += posting.stdout.read().splitlines()
    assert destination in acknowledged.pop()
    pending = seen(destination)
    assert pending is not None
    assert [key for key in pending.keys if key.startswith("live-")] == acknowledged


def test_a_place_with_events_of_its_own_takes_no_other_outbox(places: tuple[str, str]) -> None:
    """Both stay as they are and in use."""
    source, destination = places
    post(destination, "its-own")
    before = everything_in(source)
    with pytest.raises(OutboxUnavailable, match="has accepted 1 events of its own"):
        run_move(source, destination)
    assert everything_in(source) == before
    post(source, "another")
    assert seen(destination) == (["its-own"], 1)


def test_an_outbox_that_nobody_has_used_makes_room(places: tuple[str, str]) -> None:
    """A worker that was started there too early has made one; it sees the other one then."""
    source, destination = places
    before = seen(source)
    with opened(destination) as outbox:
        assert outbox.accepted() == 0
        run_move(source, destination)
        assert before is not None
        assert outbox.accepted() == before.accepted


def test_an_outbox_that_moved_away_may_come_back(places: tuple[str, str]) -> None:
    """What told of its leaving is gone then, and all is as it was."""
    source, destination = places
    before = everything_in(source)
    run_move(source, destination)
    run_move(destination, source)
    assert everything_in(source) == before
    assert seen(destination) is None
    assert not os.path.exists(f"{source}.moved")
    post(source, "goes-on")


def test_a_flusher_keeps_its_outbox(places: tuple[str, str]) -> None:
    """Nothing is moved under the hands of whoever delivers from there, or would deliver."""
    source, destination = places
    with opened(source) as outbox:
        assert outbox.try_hold()
        with pytest.raises(OutboxHeld, match=f"process {os.getpid()} delivers from {source}"):
            run_move(source, destination)
    with opened(destination) as outbox:
        assert outbox.try_hold()
        with pytest.raises(OutboxHeld, match=destination):
            run_move(source, destination)
    run_move(source, destination)


def test_no_flusher_begins_while_an_outbox_moves(places: tuple[str, str]) -> None:
    """Who would deliver meanwhile waits, at the old place as at the new one."""
    source, destination = places
    settings = Settings(outbox=source)
    with (
        contextlib.closing(open_leaving(settings)) as leaving,
        contextlib.closing(open_arriving(settings.with_outbox(destination))) as arriving,
        opened(source) as outbox,
    ):
        assert leaving.try_hold()
        assert arriving.try_hold()
        assert not outbox.try_hold()
        with opened(destination) as other:
            assert not other.try_hold()


def test_a_reader_that_does_not_end_is_no_harm(places: tuple[str, str]) -> None:
    """Where the old file cannot be closed at once, it stays in use as if nothing had been."""
    source, destination = places
    before = everything_in(source)
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _READING,
            source,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with reader, opened(source) as outbox:
        assert reader.stdout is not None
        reader.stdout.readline()
        outbox.set_link(outbox.link("events"))  # the log has something that the reader lacks
        with pytest.raises(OutboxUnavailable, match="while another program reads it"):
            run_move(source, destination)
        assert outbox.accepted() == before["events"][-1][0]
        assert not os.path.exists(f"{destination}.arrived")
        reader.communicate(b"\n")
    run_move(source, destination)


def test_another_outbox_that_is_half_way_is_not_overrun(
    places: tuple[str, str], tmp_path: Path
) -> None:
    """The new place may hold the only usable copy of it: its own move comes first."""
    source, destination = places
    other = str(tmp_path / "other.db")
    post(other, "precious")
    for line in itertools.count(1):
        mover_killed_before(line, other, destination)
        if not os.path.exists(other):
            break
    assert (seen(other), seen(destination)) == (None, None)
    with pytest.raises(OutboxUnavailable, match="finish that move first"):
        run_move(source, destination)
    with pytest.raises(OutboxUnavailable, match="run it again as it was"):
        post(destination, "too-early")
    assert run_move(other, destination).was_finished
    assert seen(destination) == (["precious"], 1)


def test_a_finished_move_may_be_run_again(places: tuple[str, str], tmp_path: Path) -> None:
    """It says what is there; under another name it is refused, and an empty place is an error."""
    source, destination = places
    first = run_move(source, destination)
    post(destination, "since-then")
    second = run_move(source, destination)
    assert second.was_finished
    assert second.contents.accepted == first.contents.accepted + 1
    with pytest.raises(OutboxMoved, match=destination):
        run_move(source, str(tmp_path / "third.db"))
    with pytest.raises(OutboxMissing):
        run_move(str(tmp_path / "nothing.db"), str(tmp_path / "third.db"))
    assert not os.path.exists(tmp_path / "third.db")


def test_a_place_with_too_small_a_limit_takes_nothing(places: tuple[str, str]) -> None:
    """An outbox never passes its limit, not by moving either; it stays where it is, in use."""
    source, destination = places
    for _ in range(60):
        post(source, None, metadata={f"k{number}": "x" * 8000 for number in range(7)})
    before = seen(source)
    with (
        contextlib.closing(open_leaving(Settings(outbox=source))) as leaving,
        contextlib.closing(SqliteArriving(destination, max_bytes=4 * 1024 * 1024)) as arriving,
        pytest.raises(OutboxFull, match="METER_MAX_BYTES"),
    ):
        move(leaving, arriving, progress=lambda *_: None)
    assert (seen(source), seen(destination)) == (before, None)


class _Forgetful(SqliteArriving):
    """A store that loses the last row of a table."""

    def __init__(self, table: str, path: str) -> None:
        super().__init__(path, max_bytes=Settings().max_bytes)
        self._table = table

    def fill(self, rows: Iterable[Rows]) -> Contents:
        return super().fill(
            each._replace(rows=each.rows[:-1]) if each.table == self._table else each
            for each in rows
        )


@pytest.mark.parametrize("table", ["events", "ledger", "unanswered", "known_keys"])
def test_what_was_written_is_counted_before_the_old_file_goes(
    places: tuple[str, str], table: str
) -> None:
    """A store that is short of a single row does not become the outbox."""
    source, destination = places
    before = seen(source)
    with (
        contextlib.closing(open_leaving(Settings(outbox=source))) as leaving,
        contextlib.closing(_Forgetful(table, destination)) as arriving,
        pytest.raises(OutboxUnavailable, match="nothing was moved"),
    ):
        move(leaving, arriving, progress=lambda *_: None)
    assert (seen(source), os.listdir(os.path.dirname(destination))) == (
        before,
        ["outbox.db.flusher"],
    )
