"""The audit: what became of every event, added up, and whatever does not add up."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib._sqlite import audit as sqlite_audit
from meter_lib.arguments import MOST_USAGE
from meter_lib.errors import OutboxFull, OutboxUnavailable
from meter_lib.outbox import Burial, Deferral, Settlement
from meter_lib.usage import usage_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meter_lib.outbox import DueEvent
    from meter_lib.upkeep import Audit, AuditRow
    from tests.integration.operating import Operator

NOON = 1_760_000_000_000  # 2025-10-09
DAY = 86_400_000
MIB = 1024 * 1024


@pytest.fixture
def outbox(outbox_path: str) -> Iterator[SqliteOutbox]:
    """An outbox."""
    opened = SqliteOutbox(outbox_path, max_bytes=64 * MIB)
    yield opened
    opened.close()


def record(outbox: SqliteOutbox, units: int | None, *, meter: str = "m", day: int = 0) -> None:
    """Record one event of a day."""
    times = {"timestamp": NOON + day * DAY} if units is not None else {"end_time": NOON + day * DAY}
    outbox.append([usage_event("t", "d", meter, units, **times)], now=NOON)


def due(outbox: SqliteOutbox) -> list[DueEvent]:
    """Everything that may be delivered."""
    return outbox.due(now=NOON, limit=1000, max_bytes=MIB)


def audit(outbox: SqliteOutbox) -> tuple[Audit, list[AuditRow]]:
    """Audit, heedless of progress."""
    with outbox.audit(progress=lambda _done, _of: None) as found:
        return found, list(found.rows)


def run(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the outbox."""
    return subprocess.run(
        [sys.executable, "-m", "meter_worker", "audit", "--outbox", path, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def change(path: str, statement: str) -> None:
    """Do to the file what no version of the library does."""
    connection = sqlite3.connect(path)
    connection.executescript(f"PRAGMA ignore_check_constraints = ON; {statement}")
    connection.close()


@pytest.fixture
def used(outbox: SqliteOutbox) -> SqliteOutbox:
    """An outbox with two events of each fate, of two days and two meters, and one session."""
    for number in range(4):
        record(outbox, 10**number, day=number % 2)
        record(outbox, 5, meter="n", day=-1)
    record(outbox, None)
    events = due(outbox)
    outbox.settle(Settlement(delivered=events[:2]), now=NOON)
    outbox.settle(Settlement(deferred=[Deferral(events[2], NOON + 9, counts=True)]), now=NOON)
    outbox.settle(
        Settlement(buried=[Burial(event, "rejected", "no") for event in events[4:7]]), now=NOON
    )
    outbox.purge([events[4].seq])
    return outbox


def test_each_event_is_in_one_place_by_day_and_stream(used: SqliteOutbox) -> None:
    """What was accepted is the sum of what became of it, in events and in units."""
    found, found_rows = audit(used)
    rows = {
        (row.day, row.meter_id): [
            tuple(one) for one in (row.accepted, row.pending, row.dead, row.delivered, row.removed)
        ]
        for row in found_rows
    }
    assert rows == {
        ("2025-10-08", "n"): [(4, 20), (2, 10), (1, 5), (1, 5), (0, 0)],
        ("2025-10-09", "m"): [(3, 101), (1, 0), (0, 0), (1, 1), (1, 100)],
        ("2025-10-10", "m"): [(2, 1010), (1, 10), (1, 1000), (0, 0), (0, 0)],
    }
    assert found.problems == []
    totals = (found.accepted, found.pending, found.dead, found.delivered, found.removed)
    assert totals == ((9, 1131), (4, 20), (2, 1005), (2, 6), (1, 100))


def test_units_beyond_64_bits_are_exact(outbox: SqliteOutbox) -> None:
    """Sums of the largest usage there is lose no unit, waiting or delivered."""
    for _ in range(6):
        record(outbox, MOST_USAGE)
    outbox.settle(Settlement(delivered=due(outbox)[:3]), now=NOON)
    found, _ = audit(outbox)
    assert found.problems == []
    assert (found.pending, found.delivered, found.accepted) == (
        (3, 3 * MOST_USAGE),
        (3, 3 * MOST_USAGE),
        (6, 6 * MOST_USAGE),
    )


def test_days_are_told_before_1970_and_beyond_the_calendar(outbox: SqliteOutbox) -> None:
    """Whatever our own clock has said is a day, rounded down."""
    for now in (-1, 0, 10**15):
        outbox.append([usage_event("t", "d", "m", 1)], now=now)
    assert [row.day for row in audit(outbox)[1]] == ["1969-12-31", "1970-01-01", "day 11574074"]


def test_an_empty_outbox_is_balanced(outbox: SqliteOutbox) -> None:
    """Nothing is the sum of nothing."""
    found, rows = audit(outbox)
    assert (found.problems, found.accepted, rows) == ([], (0, 0), [])


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM events WHERE seq = 9", "8 accepted"),
        ("DELETE FROM events WHERE seq = 4", "of the seqs 1 to 9 there are 4 gone"),
        ("UPDATE events SET seq = 20 WHERE seq = 9", "of the seqs 1 to 20"),
        ("UPDATE outbox SET delivered_events = 3", "2 events are delivered one by one, 3 by"),
        ("UPDATE outbox SET removed_events = 0", "1 events are removed one by one, 0 by"),
        ("UPDATE outbox SET dead_events = 7", "2 events are dead one by one, 7 by"),
        ("UPDATE outbox SET frontier = 9", "are pending where no flusher looks"),
        ("UPDATE outbox SET frontier = 50", "the next 41 events would never be delivered"),
        ("UPDATE streams SET held_until = NULL", "1 events wait in a stream that nobody"),
        ("UPDATE events SET total_usage = -1 WHERE seq = 4", "1 events have units that are no"),
        ("UPDATE events SET event_time = 'noon' WHERE seq = 4", "1 events have a time that is no"),
        ("UPDATE events SET stream_id = 77 WHERE seq = 4", "1 events are of a stream that is not"),
        ("UPDATE events SET seq = -3 WHERE seq = 4", "1 events have a seq below 1"),
        ("UPDATE ledger SET stream_id = stream_id + 70", "rows of the ledger are of a stream"),
        ("UPDATE ledger SET delivered_units = '-4'", "has delivered events and units that are no"),
        ("UPDATE ledger SET removed_units = '8' WHERE removed_events = 0", "but no event"),
        ("DELETE FROM ledger WHERE delivered_events = 1", "events delivered and"),
        ("UPDATE events SET total_usage = 77 WHERE seq = 4", "1 events are counted with other"),
        ("UPDATE events SET stream_id = 1 WHERE seq = 4", "1 events are of another stream"),
        ("UPDATE streams SET tenant_id = 'other' WHERE meter_id = 'm'", "are of another stream"),
        ("UPDATE events SET payload = 'x' WHERE seq = 4", "1 events have a payload that is no"),
    ],
)
def test_what_does_not_add_up_is_found(
    used: SqliteOutbox, outbox_path: str, statement: str, words: str
) -> None:
    """A row that went, came or changed behind the library's back is told, and ends with 1."""
    used.close()
    change(outbox_path, statement)
    ended = run(outbox_path, "--json")
    books = json.loads(ended.stdout)
    if words == "8 accepted":
        # The newest event gone with its seq leaves no gap: nobody on the device can know.
        assert (ended.returncode, books["totals"]["accepted"]["events"]) == (0, 8)
        return
    assert (ended.returncode, books["balanced"]) == (1, False)
    assert any(words in problem for problem in books["problems"])


def test_the_command_prints_the_books_as_the_contract_has_them(
    used: SqliteOutbox, outbox_path: str, tmp_path: Path
) -> None:
    """One object with totals and rows; the CSV file has the same rows; the table the first."""
    used.close()
    file = tmp_path / "books.csv"
    ended = run(outbox_path, "--json", "--csv", str(file))
    assert (ended.returncode, ended.stderr) == (0, "")
    books = json.loads(ended.stdout)
    assert list(books) == ["balanced", "problems", "totals", "rows"]
    assert (books["balanced"], books["problems"]) == (True, [])
    assert books["totals"]["accepted"] == {"events": 9, "units": 1131}
    assert books["rows"][0] == {
        "day": "2025-10-08",
        "tenant_id": "t",
        "device_id": "d",
        "meter_id": "n",
        "accepted": {"events": 4, "units": 20},
        "pending": {"events": 2, "units": 10},
        "dead": {"events": 1, "units": 5},
        "delivered": {"events": 1, "units": 5},
        "removed": {"events": 0, "units": 0},
    }
    with file.open(newline="") as written:
        lines = list(csv.DictReader(written))
    assert [
        {name: str(value) for name, value in flat(row).items()} for row in books["rows"]
    ] == lines

    table = run(outbox_path)
    assert (table.returncode, table.stderr) == (0, "")
    total = table.stdout.splitlines()[4].split()
    assert " ".join(total) == "total 9 / 1,131 4 / 20 2 / 1,005 2 / 6 1 / 100"
    assert "Balanced" in table.stdout


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row as its columns."""
    columns: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            columns |= {f"{name}_{what}": number for what, number in value.items()}
        else:
            columns[name] = value
    return columns


def test_a_spreadsheet_runs_nothing_of_a_csv_file(
    outbox: SqliteOutbox, outbox_path: str, tmp_path: Path
) -> None:
    """An id that looks like a formula is text."""
    outbox.append([usage_event("=cmd()", "d", "@m", 1)], now=NOON)
    outbox.close()
    file = tmp_path / "books.csv"
    assert run(outbox_path, "--csv", str(file)).returncode == 0
    assert file.read_text().splitlines()[1].startswith("2025-10-09,'=cmd(),d,'@m,1,1,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "there is no outbox at"), (["--csv", "/nonexistent/x.csv"], "there is no outbox at")],
)
def test_an_audit_makes_no_outbox(outbox_path: str, arguments: list[str], words: str) -> None:
    """A missing outbox is said and stays missing."""
    ended = run(outbox_path, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert words in ended.stderr
    assert not os.path.exists(outbox_path)


def test_a_csv_file_that_cannot_be_written_is_said(used: SqliteOutbox, outbox_path: str) -> None:
    """The message names it, and the exit code is 1."""
    used.close()
    ended = run(outbox_path, "--csv", "/nonexistent/x.csv")
    assert ended.returncode == 1
    assert "/nonexistent/x.csv cannot be written" in ended.stderr


def test_the_books_of_a_live_outbox_are_balanced_at_every_instant(
    outbox: SqliteOutbox, outbox_path: str
) -> None:
    """Audits beside posts and settlements see one instant each."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for number in range(20):
                record(outbox, number, day=number % 3)
            outbox.settle(Settlement(delivered=due(outbox)[:15]), now=NOON)

    worker = threading.Thread(target=work)
    worker.start()
    reader = SqliteOutbox(outbox_path, max_bytes=64 * MIB, read_only=True)
    try:
        record(outbox, 1)
        found = [audit(reader)]
        # However slowly the other thread gets on.
        while len(found) < 30 or (
            found[-1][0].accepted.events < found[0][0].accepted.events + 20 and len(found) < 10_000
        ):
            found.append(audit(reader))
    finally:
        stop.set()
        worker.join()
        reader.close()
    assert [one.problems for one, _ in found] == [[]] * len(found)
    assert found[-1][0].accepted.events > found[0][0].accepted.events
    for one, rows in found:
        assert sum(row.accepted.events for row in rows) == one.accepted.events


def test_a_long_audit_gives_up_before_anybody_has_to_wait_for_it(
    outbox_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it reads, the log cannot be emptied: it ends with an error, and no post does."""
    monkeypatch.setattr(sqlite_audit, "_EVENTS_A_STEP", 1)
    poster = SqliteOutbox(outbox_path, max_bytes=8 * MIB)
    poster.append([usage_event("t", "d", "m", 1) for _ in range(100)], now=NOON)
    reader = SqliteOutbox(outbox_path, max_bytes=8 * MIB, read_only=True)
    large = usage_event("t", "d", "m", 1, metadata={"text": "x" * 8000})

    def post(_done: int, _of: int) -> None:
        poster.append([large] * 4, now=NOON)

    with (
        pytest.raises(OutboxUnavailable, match="written to faster than it can be audited"),
        reader.audit(progress=post),
    ):
        pass
    for _ in range(10):
        poster.append([large] * 4, now=NOON)
    assert audit(reader)[0].problems == []
    reader.close()
    poster.close()


def test_an_outbox_that_dropped_its_oldest_is_balanced(outbox_path: str) -> None:
    """What had to make room is removed, by day, stream and units."""
    small = SqliteOutbox(outbox_path, max_bytes=4 * MIB, drops_oldest=True)
    accepted = 0
    while not (found := audit(small)[0]).removed.events:
        assert accepted < 20_000
        small.append(
            [
                usage_event("t", "d", f"m{n % 3}", n, timestamp=NOON, metadata={"x": "x" * 1000})
                for n in range(100)
            ],
            now=NOON,
        )
        accepted += 100
    small.close()
    assert found.problems == []
    assert found.accepted == (accepted, accepted // 100 * 4950)


def test_a_full_outbox_that_refused_is_balanced(outbox_path: str) -> None:
    """What was not recorded is in no sum."""
    small = SqliteOutbox(outbox_path, max_bytes=4 * MIB)
    accepted = 0
    large = [usage_event("t", "d", "m", 2, metadata={"x": "x" * 8000})] * 5
    with contextlib.suppress(OutboxFull):
        for _ in range(1000):
            small.append(large, now=NOON)
            accepted += 5
    found, _ = audit(small)
    small.close()
    assert accepted < 5000
    assert (found.problems, found.accepted) == ([], (accepted, 2 * accepted))


@pytest.mark.parametrize("lost", ["nothing", "a page"])
def test_a_salvaged_outbox_is_balanced(used: SqliteOutbox, outbox_path: str, lost: str) -> None:
    """What could be read is in its place, and what could not is removed."""
    used.close()
    content = bytearray(Path(outbox_path).read_bytes())
    if lost == "a page":
        start = (content.index(b'{"meter_id":"n"') // 1024) * 1024
        content[start : start + 1024] = bytes(1024)
    else:
        content[:100] = bytes(100)
    Path(outbox_path).write_bytes(content)
    mended = SqliteOutbox(outbox_path, max_bytes=64 * MIB)
    assert mended.salvage() or lost == "nothing"  # a broken header is met at the opening
    record(mended, 3)
    found, _ = audit(mended)
    mended.close()
    assert (found.problems, found.accepted.events >= 9) == ([], True)
    assert list(Path(outbox_path).parent.glob("*damaged*"))


def test_what_operators_do_leaves_it_balanced(operator: Operator, tmp_path: Path) -> None:
    """After a replay, a purge that exports, and an import of what it wrote, all is in its place."""
    operator.bury("a", "b", "c")
    operator.post("d")
    file = str(tmp_path / "purged.jsonl")
    for step in (
        ("replay", "a"),
        ("purge", "b", "--yes", "--export", file),
        ("import", file),
    ):
        assert operator.run("dead-letters", *step).code == 0
        books = operator.run("audit", "--json")
        assert (books.code, books.json["problems"]) == (0, [])
    assert {kind: sums["events"] for kind, sums in books.json["totals"].items()} == {
        "accepted": 5,
        "pending": 2,
        "dead": 2,
        "delivered": 0,
        "removed": 1,
    }


def test_a_terminal_sees_how_far_a_long_audit_is(used: SqliteOutbox, outbox_path: str) -> None:
    """The bar is on stderr, and ends at all of it."""
    used.close()
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "meter_worker", "audit", "--outbox", outbox_path],
        stdout=subprocess.DEVNULL,
        stderr=slave,
    ) as process:
        os.close(slave)
        seen = _all_of(lambda: os.read(master, 4096))
    os.close(master)
    assert process.returncode == 0
    assert "auditing" in seen
    assert "100%" in seen


def _all_of(read: Callable[[], bytes]) -> str:
    """Read until the other side is gone."""
    seen = b""
    try:
        while more := read():
            seen += more
    except OSError:  # how Linux says so of a terminal
        pass
    return seen.decode()
