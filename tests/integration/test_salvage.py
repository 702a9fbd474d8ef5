"""A damaged outbox never stops capture, and each event that can be read goes on under its key."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import meter_migrations
from meter_lib import MeterClient
from meter_lib._sqlite import SqliteOutbox, file_lock
from meter_lib._sqlite.file_lock import FileLock
from meter_lib._sqlite.salvage.set_aside import set_aside_files
from meter_lib.errors import KeyConflict, OutboxFull, OutboxUnavailable, SchemaTooNew
from meter_lib.outbox import Burial, Deferral, Selector, Settlement
from meter_lib.usage import usage_event
from tests.small_disks import small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meter_lib.outbox import DueEvent, OutboxStatus
    from meter_lib.usage import UsageEvent

NOON = 1_760_000_000_000
MIB = 2**20
PAGE = 1024
FRAME = 24 + PAGE


def use(number: int, *, long: bool = False, **said: Any) -> UsageEvent:
    """An event whose payload is like no other's, on pages of its own where it is long."""
    tag = f"<{number}>"
    return usage_event(
        f"tenant_{number % 3}",
        "d",
        "m",
        number,
        metadata={"tag": tag * (500 if long else 2)},
        **said,
    )


class Made(NamedTuple):
    """An outbox as it was before it was damaged."""

    files: dict[str, bytes]
    live: dict[str, int]
    """Of each event that is not settled: its idempotency key and its number."""
    delivered: set[str]
    dead: set[str]
    outbox_id: str
    accepted: int


def make(folder: Path, *, hot: bool) -> Made:
    """Fill an outbox with events in every state; `hot` leaves half of it in the log."""
    outbox = open_outbox(folder)
    keys: dict[str, int] = {}

    def post(first: int, last: int) -> None:
        for start in range(first, last, 20):
            numbers = range(start, min(start + 20, last))
            events = [
                use(number, long=number % 7 == 0)
                if number % 5
                else use(number, idempotency_key=f"own-{number}")
                for number in numbers
            ]
            for number, receipt in zip(numbers, outbox.append(events, now=NOON), strict=True):
                keys[receipt["idempotency_key"]] = number

    post(1, 200)
    due = all_due(outbox)
    dead = due[3:200:40]
    deferred = due[100:110]
    delivered = [event for event in due[:100] if event not in dead]
    outbox.settle(
        Settlement(
            delivered=delivered,
            buried=[Burial(event, "rejected", f"no {event.seq}") for event in dead],
            deferred=[Deferral(event, NOON, counts=True) for event in deferred],
        ),
        now=NOON,
    )
    if hot:
        checkpoint(outbox)
    post(200, 300)
    status = outbox.status()
    if not hot:
        outbox.close()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if "db" in path.name}
    outbox.close()
    files = {name: files[name] for name in ("outbox.db", "outbox.db-wal") if name in files}
    gone = {event.idempotency_key for event in delivered}
    return Made(
        files,
        {key: number for key, number in keys.items() if key not in gone},
        gone,
        {event.idempotency_key for event in dead},
        status.outbox_id,
        status.accepted,
    )


def checkpoint(outbox: SqliteOutbox) -> None:
    """Empty the log into the database."""
    connection = outbox._database._connection
    assert connection is not None
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def open_outbox(folder: Path, **how: Any) -> SqliteOutbox:
    """The outbox of a folder."""
    return SqliteOutbox(str(folder / "outbox.db"), max_bytes=64 * MIB, **how)


def all_due(outbox: SqliteOutbox) -> list[DueEvent]:
    """Everything that may be delivered, whatever has to be put behind something else first."""
    found: list[DueEvent] = []
    while True:
        due = outbox.due(now=NOON, limit=100_000, max_bytes=2**30)
        held = [event for event in due if event.held]
        if not held:
            return found + due
        outbox.queue(held)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Made]:
    """Outboxes to damage: by whether their log is hot."""
    return {hot: make(tmp_path_factory.mktemp("made"), hot=hot) for hot in (False, True)}


def intact(made: Made, damaged: dict[str, bytes]) -> set[str]:
    """The events of which every byte is where it was: all that a salvage can be asked for.

    Told by the text of their payloads alone: the pages that hold it are the same as before, and
    so are the frames that vouch for them.
    """
    frames = range(len(made.files.get("outbox.db-wal", b"")) // FRAME)
    changed = {index for index in frames if frame(made.files, index) != frame(damaged, index)}
    if damaged.get("outbox.db-wal", b"")[:32] != made.files.get("outbox.db-wal", b"")[:32]:
        changed.add(-1)
    commits = [index for index in frames if struct.unpack_from(">4xI", frame(made.files, index))[0]]
    vouched = [index for index in frames if index not in changed and index - 1 not in changed]
    last_commit = max([index for index in commits if index in vouched], default=-1)
    readable = {index for index in vouched if index <= last_commit}
    log_of = {struct.unpack_from(">I", frame(made.files, index))[0] - 1: index for index in frames}
    pages = range(1 + max(len(made.files["outbox.db"]) // PAGE - 1, *log_of, 0))
    lost = {
        page
        for page in pages
        if (
            log_of[page] not in readable
            if page in log_of
            else page_of_file(made.files, page) != page_of_file(damaged, page)
        )
    }
    return {
        key
        for key, number in made.live.items()
        if not any(
            needle
            in (
                frame(made.files, log_of[page])
                if page in log_of
                else page_of_file(made.files, page)
            )
            for page in lost
            for needle in (f"<{number}>".encode(), key.encode())
        )
    }


def frame(files: dict[str, bytes], index: int) -> bytes:
    """A frame of the log, with its header."""
    start = 32 + index * FRAME
    return files.get("outbox.db-wal", b"")[start : start + FRAME]


def page_of_file(files: dict[str, bytes], page: int) -> bytes:
    """A page of the database, numbered from 0."""
    return files.get("outbox.db", b"")[page * PAGE : (page + 1) * PAGE]


class Found(NamedTuple):
    """What is in an outbox after a salvage."""

    keys: list[str]
    dead: set[str]
    status: OutboxStatus
    rows: int


def capture_goes_on(folder: Path) -> Found:
    """Post as if nothing had happened; then look through all there is, as an operator would."""
    outbox = open_outbox(folder)
    (receipt,) = outbox.append([use(1_000_000)], now=NOON)
    with contextlib.suppress(OutboxUnavailable):  # whoever meets damage meets it once
        all_due(outbox)
        list(outbox.dead_letters(Selector()))
    outbox.salvage()
    status = outbox.status()
    dead = {letter.idempotency_key for letter in outbox.dead_letters(Selector())}
    outbox.close()
    with sqlite3.connect(folder / "outbox.db") as connection:
        keys = [key for (key,) in connection.execute("SELECT idempotency_key FROM events")]
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        ledger = connection.execute(
            "SELECT total(delivered_events), total(removed_events) FROM ledger"
        ).fetchone()
    connection.close()
    assert found == "ok"
    assert status.accepted == status.pending + status.dead + status.delivered + status.removed
    assert (status.pending + status.dead, status.dead) == (len(keys), len(dead))
    assert ledger == (status.delivered, status.removed)
    assert len(keys) == len(set(keys))
    keys.remove(receipt["idempotency_key"])
    return Found(keys, dead, status, len(keys))


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Put these files into the folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


# -- damage -----------------------------------------------------------------------------


def changed(content: bytes, offset: int, new: bytes) -> bytes:
    """The content with other bytes at a place."""
    return content[:offset] + new + content[offset + len(new) :]


def first_page(content: bytes, kind: int, text: bytes = b"") -> int:
    """Where the first page of this type of tree begins, behind page 1, that holds the text."""
    return next(
        offset
        for offset in range(PAGE, len(content), PAGE)
        if content[offset] == kind and text in content[offset : offset + PAGE]
    )


def zero(offset: int, size: int = PAGE) -> Callable[[bytes], bytes]:
    """Damage that leaves zeros."""
    return lambda content: changed(content, offset, bytes(size))


def zero_page(kind: int, text: bytes = b"") -> Callable[[bytes], bytes]:
    """Damage to a page of this type."""
    return lambda content: changed(content, first_page(content, kind, text), bytes(PAGE))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "all zeros": lambda content: bytes(len(content)),
    "the header alone": lambda content: content[:100],
    "half a header": lambda content: content[:50],
    "cut in the first page": lambda content: content[:700],
    "cut after the first page": lambda content: content[:PAGE],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut in a page": lambda content: content[: len(content) // 2 // PAGE * PAGE + 300],
    "cut before the end": lambda content: content[:-1],
    "the last page lost": lambda content: content[:-PAGE],
    "the magic zero": zero(0, 16),
    "the header zero": zero(0, 100),
    "the first page zero": zero(0),
    "the first block of a disk zero": zero(0, 4096),
    "the schema zero": zero(100, PAGE - 100),
    "the page size wrong": lambda content: changed(content, 16, b"\x10\x00"),
    "no schema version": lambda content: changed(content, 60, bytes(4)),
    "no application": lambda content: changed(content, 68, b"XYZW"),
    "a leaf with events zero": zero_page(13, b"tenant_id"),
    "a leaf with events garbled": lambda content: changed(
        content, first_page(content, 13, b"tenant_id"), b"\x77" * 8
    ),
    "a page above the events zero": zero_page(5),
    "an index zero": zero_page(10),
    "a table renamed": lambda content: content.replace(b"TABLE events", b"TABLE evenXs", 1),
    "a column renamed": lambda content: content.replace(b"idempotency_key", b"idempotency_kez", 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("hot", [False, True], ids=["closed", "hot"])
def test_what_can_be_read_of_a_damaged_database_goes_on(
    tmp_path: Path, made: dict[bool, Made], hot: bool, damage: Callable[[bytes], bytes]
) -> None:
    """Capture works at once, whole events are there once, and the books balance."""
    files = {**made[hot].files, "outbox.db": damage(made[hot].files["outbox.db"])}
    check(tmp_path, made[hot], files)


def noticed_at_opening(made: Made) -> dict[str, bytes]:
    """The files with a damage that shows before anything is written."""
    name, damage = (
        ("outbox.db-wal", LOG_DAMAGE["its salt wrong"])
        if "outbox.db-wal" in made.files
        else ("outbox.db", DAMAGE["the magic zero"])
    )
    return {**made.files, name: damage(made.files[name])}


def cut_off(made: Made, damaged: dict[str, bytes]) -> set[str]:
    """The events of which the log tells no more than after a power cut in the last commit.

    An end that is not whole belongs to a commit that nobody has a receipt for, if no more than
    one whole commit stands behind the damage.
    """
    frames = range(len(made.files.get("outbox.db-wal", b"")) // FRAME)
    changed = [index for index in frames if frame(made.files, index) != frame(damaged, index)]
    commits = [index for index in frames if struct.unpack_from(">4xI", frame(made.files, index))[0]]
    whole = [
        index
        for index in commits
        if changed and index > changed[0] and index not in changed and index - 1 not in changed
    ]
    if not changed or len(whole) > 1:
        return set()
    first = 200 + 20 * len([index for index in commits if index < changed[0]])
    return {key for key, number in made.live.items() if number >= first}


def check(folder: Path, made: Made, files: dict[str, bytes]) -> Found:
    """Open these files, and compare what is there with what can be."""
    write(folder, files)
    found = capture_goes_on(folder)
    expected = intact(made, files) - cut_off(made, files)
    assert expected - set(found.keys) == set()
    assert found.rows <= len(made.live) + len(made.delivered)
    assert expected & made.dead <= found.dead
    return found


def test_what_was_deleted_stays_so_where_the_list_of_free_pages_is_damaged(
    tmp_path: Path, made: dict[bool, Made]
) -> None:
    """Pages that nobody knows to be free any more show events that were delivered: not taken."""
    files = made[True].files
    (trunk,) = struct.unpack_from(">I", files["outbox.db"], 32)
    assert trunk
    damaged = changed(files["outbox.db"], (trunk - 1) * PAGE, b"\xff" * 16)
    damaged = zero_page(5)(damaged)
    found = check(tmp_path, made[True], {**files, "outbox.db": damaged})
    assert set(found.keys) & made[True].delivered == set()


LOG_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "its header zero": zero(0, 32),
    "its salt wrong": lambda log: changed(log, 16, b"salt"),
    "a checksum wrong": lambda log: changed(log, 32 + FRAME * 5 + 16, b"sums"),
    "a page wrong": lambda log: changed(log, 32 + FRAME * 5 + 500, b"page"),
    "a frame zero": lambda log: changed(log, 32 + FRAME * 5, bytes(FRAME)),
    "cut in a frame": lambda log: log[: 32 + FRAME * 9 + 100],
    "cut to its header": lambda log: log[:32],
}


@pytest.mark.parametrize("damage", LOG_DAMAGE.values(), ids=LOG_DAMAGE.keys())
def test_what_can_be_read_of_a_damaged_log_goes_on(
    tmp_path: Path, made: dict[bool, Made], damage: Callable[[bytes], bytes]
) -> None:
    """A damaged frame costs what it holds, not the events behind it that SQLite would drop."""
    files = {**made[True].files, "outbox.db-wal": damage(made[True].files["outbox.db-wal"])}
    check(tmp_path, made[True], files)


def test_a_log_without_its_database_is_salvaged(tmp_path: Path, made: dict[bool, Made]) -> None:
    """Where the database was deleted, the events in its log go on."""
    files = {"outbox.db-wal": made[True].files["outbox.db-wal"]}
    write(tmp_path, files)
    found = capture_goes_on(tmp_path)
    assert intact(made[True], files) <= set(found.keys)
    assert found.rows > 90


def test_a_database_without_its_log_goes_on(tmp_path: Path, made: dict[bool, Made]) -> None:
    """Where the log was deleted, what the last checkpoint had goes on."""
    check(tmp_path, made[True], {"outbox.db": made[True].files["outbox.db"]})


@pytest.mark.parametrize("part", range(8))
def test_no_random_damage_stops_capture(tmp_path: Path, made: dict[bool, Made], part: int) -> None:
    """Bytes, blocks and ends, changed at random: each event whose bytes are whole is there once."""
    for seed in range(part * 40, (part + 1) * 40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        random_source = random.Random(seed)  # noqa: S311  # the same damage in every run
        whole = made[random_source.random() < 0.5]
        files = at_random(random_source, whole.files)
        try:
            check(folder, whole, files)
        except SchemaTooNew:
            # By its only sign a newer file: not to be touched, whatever else may be wrong with it.
            assert files["outbox.db"][60:64] != whole.files["outbox.db"][60:64]
        shutil.rmtree(folder)


def at_random(random_source: random.Random, files: dict[str, bytes]) -> dict[str, bytes]:
    """These files with one to six pieces of damage."""
    damaged = dict(files)
    for _ in range(random_source.choice([1, 1, 2, 6])):
        name = random_source.choice(sorted(damaged))
        content = damaged[name]
        place = random_source.randrange(max(1, len(content)))
        if random_source.random() < 0.3:  # where most of the structure is
            place = place // PAGE * PAGE + random_source.randrange(20)
        kind = random_source.choice(["flip", "flip", "zero", "noise", "cut", "block"])
        if kind == "flip" and place < len(content):
            bit = 1 << random_source.randrange(8)
            content = changed(content, place, bytes([content[place] ^ bit]))
        elif kind == "cut":
            content = content[:place]
        elif kind == "block":
            content = changed(content, place // 512 * 512, bytes(512))[: len(content)]
        else:
            size = random_source.choice([1, 8, 100, 2000])
            new = bytes(size) if kind == "zero" else random_source.randbytes(size)
            content = changed(content, place, new)[: len(content)]
        damaged[name] = content
    return damaged


# -- what goes over ---------------------------------------------------------------------


def test_the_new_outbox_goes_on_where_the_old_one_was(
    tmp_path: Path, made: dict[bool, Made]
) -> None:
    """Name, numbers, dead letters with their reasons, attempts and counts are those of before."""
    whole = made[False]
    found = check(tmp_path, whole, {"outbox.db": zero_page(10)(whole.files["outbox.db"])})
    status = found.status
    assert (status.outbox_id, status.accepted) == (whole.outbox_id, whole.accepted + 1)
    assert (status.delivered, status.removed, status.dead) == (len(whole.delivered), 0, 5)
    assert set(found.keys) == whole.live.keys()
    outbox = open_outbox(tmp_path)
    letters = list(outbox.dead_letters(Selector()))
    assert {(letter.reason, letter.detail) for letter in letters} == {
        ("rejected", f"no {letter.seq}") for letter in letters
    }
    assert {letter.dead_at for letter in letters} == {NOON}
    due = all_due(outbox)
    assert {event.seq: event.attempts for event in due if event.attempts} == dict.fromkeys(
        range(101, 111), 1
    )
    for event in due[:50]:
        assert whole.live.get(event.idempotency_key, 1_000_000) == event.total_usage
    outbox.close()


def test_lost_events_are_counted(tmp_path: Path, made: dict[bool, Made]) -> None:
    """What cannot be read counts as removed, in the ledger under a name that says why."""
    whole = made[False]
    content = whole.files["outbox.db"]
    found = check(tmp_path, whole, {"outbox.db": zero_page(13, b"<250>")(content)})
    lost = len(whole.live) - found.rows
    assert lost > 0
    assert (found.status.removed, found.status.accepted) == (lost, whole.accepted + 1)
    with sqlite3.connect(tmp_path / "outbox.db") as connection:
        told = connection.execute(
            """
            SELECT tenant_id, device_id, meter_id, removed_events FROM ledger
            JOIN streams USING (stream_id) WHERE removed_events > 0
            """
        ).fetchall()
    connection.close()
    assert told == [("(unreadable)", "(unreadable)", "(unreadable)", lost)]


def test_keys_of_callers_are_known_as_before(tmp_path: Path, made: dict[bool, Made]) -> None:
    """A repeated post is a duplicate after a salvage too, of a delivered event as of a pending."""
    check(tmp_path, made[False], {"outbox.db": zero_page(10)(made[False].files["outbox.db"])})
    outbox = open_outbox(tmp_path)
    for number in (10, 250):
        (receipt,) = outbox.append([use(number, idempotency_key=f"own-{number}")], now=NOON)
        assert receipt["status"] == "duplicate"
        with pytest.raises(KeyConflict):
            outbox.append([use(number + 1, idempotency_key=f"own-{number}")], now=NOON)
    outbox.close()


def test_an_event_that_contradicts_itself_is_for_an_operator(
    tmp_path: Path, made: dict[bool, Made]
) -> None:
    """Where a row says other units, or another tenant, than its payload, nobody is billed by it."""
    content = made[False].files["outbox.db"]
    content = content.replace(
        b'"tenant_1","device_id":"d","total_usage":202,',
        b'"tenant_7","device_id":"d","total_usage":202,',
    )
    content = content.replace(b'"total_usage":205,', b'"total_usage":905,')
    found = check(tmp_path, made[False], {"outbox.db": zero_page(10)(content)})
    outbox = open_outbox(tmp_path)
    damaged = list(outbox.dead_letters(Selector(reason="damaged")))
    outbox.close()
    assert len(damaged) == 2
    assert found.rows == len(made[False].live)


def test_a_damaged_stream_makes_no_dead_letters(tmp_path: Path, made: dict[bool, Made]) -> None:
    """Where no event agrees with its stream, it is the stream that is wrong: all are delivered."""
    content = made[False].files["outbox.db"]
    place = first_page(content, 13, b"tenant_1d")
    page = content[place : place + PAGE].replace(b"tenant_1d", b"tenant_9d")
    content = zero_page(10)(changed(content, place, page))
    assert check(tmp_path, made[False], {"outbox.db": content}).status.dead == 5


def test_the_operator_is_told(
    tmp_path: Path, made: dict[bool, Made], caplog: pytest.LogCaptureFixture
) -> None:
    """An ERROR in the log says what happened, with numbers, and where the old file is."""
    check(tmp_path, made[False], {"outbox.db": zero(0)(made[False].files["outbox.db"])})
    (record,) = caplog.records
    (aside,) = set_aside_files(str(tmp_path / "outbox.db"))
    assert (record.name, record.levelno) == ("meter_lib", logging.ERROR)
    assert aside in record.message
    assert f"{len(made[False].live)} events went over" in record.message


# -- files that are not ours ------------------------------------------------------------


def _marked_by_another(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 5")
    connection.close()


def _text(path: Path) -> None:
    path.write_text("Dear diary, today I was nearly taken for a database. " * 50)


def _other_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()


@pytest.mark.parametrize("is_open", [False, True])
def test_the_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, *, is_open: bool
) -> None:
    """A path was mistyped: to move what is there would take its data away from that program."""
    path = tmp_path / "outbox.db"
    theirs = sqlite3.connect(path)
    theirs.execute("PRAGMA journal_mode = WAL")
    theirs.execute("CREATE TABLE events (x)")
    theirs.executemany("INSERT INTO events VALUES (?)", [(str(n),) for n in range(1000)])
    theirs.commit()
    if not is_open:
        theirs.close()
    before = path.read_bytes()
    with MeterClient(path) as client, pytest.raises(OutboxUnavailable, match="left untouched"):
        client.post("t", "d", "m", 1)
    assert path.read_bytes() == before
    assert set_aside_files(str(path)) == []
    if is_open:
        assert theirs.execute("SELECT count(*) FROM events").fetchone() == (1000,)
        theirs.close()


@pytest.mark.parametrize("make_it", [_marked_by_another, _text, _other_version])
def test_a_foreign_file_is_set_aside_whole(
    tmp_path: Path, make_it: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Capture goes on in an outbox of its own, and the other file is there byte for byte."""
    make_it(tmp_path / "outbox.db")
    before = (tmp_path / "outbox.db").read_bytes()
    assert capture_goes_on(tmp_path).rows == 0
    (aside,) = set_aside_files(str(tmp_path / "outbox.db"))
    assert Path(aside).read_bytes() == before
    assert aside in caplog.text


def test_damage_is_set_aside_byte_for_byte(tmp_path: Path, made: dict[bool, Made]) -> None:
    """What was damaged when it was opened is kept as it was found, with its log."""
    files = noticed_at_opening(made[True])
    check(tmp_path, made[True], files)
    (aside,) = set_aside_files(str(tmp_path / "outbox.db"))
    assert Path(aside).read_bytes() == files["outbox.db"]
    assert Path(f"{aside}-wal").read_bytes() == files["outbox.db-wal"]


def test_each_file_set_aside_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Damage that comes again within a second overwrites nothing."""
    for number in range(3):
        (tmp_path / "outbox.db").write_bytes(b"%d" % number * 5000)
        capture_goes_on(tmp_path)
    kept = [Path(name).read_bytes()[:1] for name in set_aside_files(str(tmp_path / "outbox.db"))]
    assert sorted(kept) == [b"0", b"1", b"2"]


def test_what_a_link_leads_to_is_set_aside_where_it_is(
    tmp_path: Path, made: dict[bool, Made]
) -> None:
    """The link stays, and the files keep together."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "outbox.db").write_bytes(zero(0)(made[False].files["outbox.db"]))
    (tmp_path / "outbox.db").symlink_to(tmp_path / "elsewhere" / "outbox.db")
    capture_goes_on(tmp_path)
    assert (tmp_path / "outbox.db").is_symlink()
    assert len(set_aside_files(str(tmp_path / "elsewhere" / "outbox.db"))) == 1


# -- what is no damage ------------------------------------------------------------------


def test_a_missing_right_is_no_damage(tmp_path: Path, made: dict[bool, Made]) -> None:
    """A file that may not be read stays where it is, and the error says why."""
    write(tmp_path, made[False].files)
    (tmp_path / "outbox.db").chmod(0)
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    try:
        with pytest.raises(OutboxUnavailable, match=r"unable to open|[Pp]ermission"):
            open_outbox(tmp_path).append([use(1)], now=NOON)
    finally:
        os.seteuid(was)
    assert (tmp_path / "outbox.db").read_bytes() == made[False].files["outbox.db"]
    assert set_aside_files(str(tmp_path / "outbox.db")) == []


def test_what_sqlite_lacks_is_no_damage(tmp_path: Path) -> None:
    """A statement that this SQLite cannot run says nothing of the file."""
    outbox = open_outbox(tmp_path)
    outbox.append([use(1)], now=NOON)
    with (
        pytest.raises(OutboxUnavailable, match="no such table: json_everything"),
        outbox._database.read() as connection,
    ):
        connection.execute("SELECT * FROM json_everything('[]')")
    outbox.close()
    assert set_aside_files(str(tmp_path / "outbox.db")) == []


def test_reading_sets_nothing_aside(tmp_path: Path, made: dict[bool, Made]) -> None:
    """A command that only reads says what is wrong, and leaves it to others."""
    write(tmp_path, {"outbox.db": zero(0)(made[False].files["outbox.db"])})
    outbox = open_outbox(tmp_path, read_only=True)
    with pytest.raises(OutboxUnavailable, match="not a database"):
        outbox.status()
    outbox.close()
    assert [path.name for path in tmp_path.iterdir()] == ["outbox.db"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Generator[Path, None, None]:
    """A file system of 2 MiB."""
    with small_disk("tmpfs", tmp_path, mib=2) as disk:
        yield disk


def test_a_full_disk_stops_a_salvage_and_hurts_nothing(
    full_disk: Path, made: dict[bool, Made]
) -> None:
    """Without room for a new outbox the damaged one stays; with room, all goes on."""
    files = {"outbox.db": zero(0)(made[False].files["outbox.db"])}
    write(full_disk, files)
    ballast = full_disk / "ballast"
    ballast.write_bytes(bytes(1800 * 1024))
    outbox = open_outbox(full_disk)
    with pytest.raises(OutboxFull):
        outbox.append([use(1)], now=NOON)
    outbox.close()
    assert (full_disk / "outbox.db").read_bytes() == files["outbox.db"]
    assert set_aside_files(str(full_disk / "outbox.db")) == []
    ballast.unlink()
    assert set(capture_goes_on(full_disk).keys) == set(made[False].live)


# -- at any moment ----------------------------------------------------------------------

DIES_AT = """
import os, signal, sys
from meter_lib._sqlite import SqliteOutbox
from meter_lib.usage import usage_event

left = int(sys.argv[2])

def dying(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call

for name in ("open", "pread", "rename", "unlink", "fsync", "close"):
    setattr(os, name, dying(getattr(os, name)))
SqliteOutbox(sys.argv[1], max_bytes=64 * 2**20).append(
    [usage_event("t", "d", "m", 1)], now=1_760_000_000_000
)
"""


@pytest.mark.parametrize("hot", [False, True], ids=["closed", "hot"])
def test_a_salvage_that_is_killed_is_done_by_the_next_one(
    tmp_path: Path, made: dict[bool, Made], hot: bool
) -> None:
    """Wherever SIGKILL strikes, the next opening ends with each event once, and one file aside."""
    whole = made[hot]
    files = noticed_at_opening(whole)
    # By the last calls the steps are taken; of the reads before them, some will do.
    calls = _calls(tmp_path / "counted", files)
    for moment in [*range(1, calls - 30, 200), *range(calls - 30, calls + 1)]:
        folder = tmp_path / str(moment)
        folder.mkdir()
        write(folder, files)
        died = subprocess.run(
            [sys.executable, "-c", DIES_AT, str(folder / "outbox.db"), str(moment)],
            capture_output=True,
            check=False,
        )
        assert died.returncode == -signal.SIGKILL
        outbox = open_outbox(folder)
        outbox.append([use(1_000_000)], now=NOON)
        outbox.close()
        found = capture_goes_on(folder)
        assert intact(whole, files) <= set(found.keys)
        (aside,) = set_aside_files(str(folder / "outbox.db"))
        assert Path(aside).read_bytes() == files["outbox.db"]
        assert [
            path.name for path in folder.iterdir() if path.suffix in {".new", ".building"}
        ] == []
        shutil.rmtree(folder)


def _calls(folder: Path, files: dict[str, bytes]) -> int:
    """How many calls there are to die at."""
    folder.mkdir()
    write(folder, files)
    program = DIES_AT + "\nprint(-left)\n"
    told = subprocess.run(
        [sys.executable, "-c", program, str(folder / "outbox.db"), "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(told.stdout)


def test_a_process_that_had_it_open_goes_on_in_the_new_one(
    tmp_path: Path, made: dict[bool, Made]
) -> None:
    """Whoever sets a file aside leaves nobody behind writing to it."""
    write(tmp_path, made[False].files)
    other = open_outbox(tmp_path)
    other.append([use(400)], now=NOON)
    one = open_outbox(tmp_path)
    one.status()
    path = tmp_path / "outbox.db"
    checkpoint(other)
    path.write_bytes(zero_page(5)(path.read_bytes()))
    with contextlib.suppress(OutboxUnavailable):
        all_due(one)
    assert len(set_aside_files(str(path))) == 1
    (receipt,) = other.append([use(401)], now=NOON)
    assert receipt["idempotency_key"] in {event.idempotency_key for event in all_due(one)}
    one.close()
    other.close()
    assert len(set_aside_files(str(path))) == 1


def test_a_post_that_waits_for_the_lock_meanwhile_lands_in_the_new_one(
    tmp_path: Path, made: dict[bool, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receipt is for an event in the file at the path, never for one in the file set aside."""
    write(tmp_path, made[False].files)
    path = str(tmp_path / "outbox.db")
    waiting = threading.Event()
    nap = file_lock.time.sleep

    def noticed(seconds: float) -> None:
        waiting.set()
        nap(seconds)

    poster = open_outbox(tmp_path)
    poster.status()
    lock = FileLock(f"{path}.lock")
    assert lock.try_acquire()
    monkeypatch.setattr(file_lock.time, "sleep", noticed)
    receipts: list[Any] = []
    thread = threading.Thread(target=lambda: receipts.extend(poster.append([use(401)], now=NOON)))
    thread.start()
    assert waiting.wait(10)
    for end in ("", "-wal"):
        os.rename(path + end, f"{path}.damaged-by-hand{end}")
    lock.release()
    thread.join(20)
    found = capture_goes_on(tmp_path)
    assert [receipt["idempotency_key"] for receipt in receipts] == found.keys
    lock.close()
    poster.close()


def test_a_flusher_keeps_its_hold(tmp_path: Path, made: dict[bool, Made]) -> None:
    """The hold is of the place, not of the file: no second flusher comes in between."""
    write(tmp_path, made[False].files)
    flusher = open_outbox(tmp_path)
    assert flusher.try_hold()
    path = tmp_path / "outbox.db"
    path.write_bytes(zero_page(5)(path.read_bytes()))
    with contextlib.suppress(OutboxUnavailable):
        all_due(flusher)
    assert len(set_aside_files(str(path))) == 1
    other = open_outbox(tmp_path)
    assert not other.try_hold()
    assert len(all_due(flusher)) > 100
    other.close()
    flusher.close()


def test_a_post_that_meets_the_damage_itself_gets_its_receipt(
    tmp_path: Path, made: dict[bool, Made]
) -> None:
    """Damage met in the middle of a post is mended, and the post goes through."""
    content = made[False].files["outbox.db"]
    path = tmp_path / "outbox.db"
    write(tmp_path, {"outbox.db": content})
    outbox = open_outbox(tmp_path)
    assert outbox.holder() is None
    outbox.link("events")  # open, with nothing of the events read yet
    path.write_bytes(zero_page(5)(content))
    (receipt,) = outbox.append([use(400)], now=NOON)
    assert receipt["status"] == "queued"
    outbox.close()
    assert len(set_aside_files(str(path))) == 1


def test_a_newer_file_is_left_alone(tmp_path: Path, made: dict[bool, Made]) -> None:
    """What a newer version made is no damage."""
    version = struct.pack(">I", meter_migrations.LATEST + 1)
    newer = changed(made[False].files["outbox.db"], 60, version)
    write(tmp_path, {"outbox.db": newer})
    with pytest.raises(SchemaTooNew):
        open_outbox(tmp_path).append([use(1)], now=NOON)
    assert (tmp_path / "outbox.db").read_bytes() == newer
