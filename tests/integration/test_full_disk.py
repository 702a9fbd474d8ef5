"""Small file systems that are really full, or really read-only."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import OutboxFull, OutboxUnavailable
from meter_lib.outbox import Settlement
from meter_lib.usage import usage_event
from tests.small_disks import MIB, done, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meter_lib.usage import UsageEvent

NOON = 1_760_000_000_000


def use(units: int = 1, **said: Any) -> UsageEvent:
    """An event of about 1 KiB."""
    return usage_event("t", "d", "m", units, metadata={"x": "y" * 800}, **said)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of some 12 MiB."""
    with small_disk(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def opened(disk: Path) -> Iterator[Callable[[], SqliteOutbox]]:
    """Open the outbox on that disk, which could grow beyond it; all are closed at the end."""
    outboxes: list[SqliteOutbox] = []

    def open_it() -> SqliteOutbox:
        outboxes.append(SqliteOutbox(str(disk / "outbox.db"), max_bytes=256 * MIB))
        return outboxes[-1]

    yield open_it
    for outbox in outboxes:
        outbox.close()


def fill(disk: Path) -> None:
    """Leave not a byte, as another program's log would."""
    with open(disk / "filler", "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def record_until_full(outbox: SqliteOutbox) -> list[str]:
    """Post until it is refused, and return the keys of those that were not."""
    keys: list[str] = []
    with suppress(OutboxFull):
        while True:
            receipts = outbox.append([use()] * 10, now=NOON)
            keys += [receipt["idempotency_key"] for receipt in receipts]
    return keys


def drain(outbox: SqliteOutbox) -> list[str]:
    """Deliver everything, and return the keys in their order."""
    keys: list[str] = []
    while batch := outbox.due(now=NOON, limit=500, max_bytes=MIB):
        outbox.settle(Settlement(delivered=batch), now=NOON)
        keys += [event.idempotency_key for event in batch]
    return keys


def assert_sound(path: Path) -> None:
    """The file has no damage."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_disk_without_a_free_byte_can_be_drained(
    disk: Path, opened: Callable[[], SqliteOutbox]
) -> None:
    """What was accepted until the disk was full is delivered while it is full, then posts go on."""
    poster, flusher = opened(), opened()
    assert flusher.try_hold()
    keys = record_until_full(poster)
    fill(disk)
    assert drain(flusher) == keys
    (disk / "filler").unlink()
    poster.append([use()], now=NOON)
    assert len(drain(flusher)) == 1
    assert_sound(disk / "outbox.db")


def test_a_flusher_can_start_on_a_disk_without_a_free_byte(
    disk: Path, opened: Callable[[], SqliteOutbox]
) -> None:
    """After a restart the log has to be made anew, and the disk has no byte left for it."""
    poster = opened()
    keys = [
        receipt["idempotency_key"]
        for _ in range(200)
        for receipt in poster.append([use()] * 10, now=NOON)
    ]
    poster.close()
    fill(disk)
    flusher = opened()
    assert flusher.try_hold()
    assert drain(flusher) == keys


def test_posts_do_not_take_what_was_set_free_for_settling(
    disk: Path, opened: Callable[[], SqliteOutbox]
) -> None:
    """While the disk is full, posts are refused between the settlements, and none is lost."""
    poster, flusher = opened(), opened()
    assert flusher.try_hold()
    keys = record_until_full(poster)
    fill(disk)
    delivered: list[str] = []
    while batch := flusher.due(now=NOON, limit=100, max_bytes=MIB):
        if len(delivered) < 2000:
            with suppress(OutboxFull):
                receipts = poster.append([use()], now=NOON)
                keys += [receipt["idempotency_key"] for receipt in receipts]
        flusher.settle(Settlement(delivered=batch), now=NOON)
        delivered += [event.idempotency_key for event in batch]
    assert delivered == keys
    assert flusher.status().pending == 0


def test_space_returns_to_a_full_disk(disk: Path, opened: Callable[[], SqliteOutbox]) -> None:
    """What the events had taken is free for others once they are delivered."""
    poster, flusher = opened(), opened()
    record_until_full(poster)
    fill(disk)
    drain(flusher)
    poster.close()
    flusher.close()
    found = os.statvfs(disk)
    assert found.f_bavail * found.f_frsize > 4 * MIB


POSTER = """
import sys
from meter_lib import MeterClient, OutboxUnavailable

client = MeterClient(sys.argv[1])
for number in range(3):
    try:
        print(client.post("t", "d", "page.processed.basic", number)["status"])
    except OutboxUnavailable:
        print("refused")
"""


def test_a_first_post_on_a_full_disk_says_so(disk: Path) -> None:
    """Where not even an empty outbox fits, nothing is left in its place but what SQLite can use."""
    fill(disk)
    path = disk / "outbox.db"
    full = subprocess.run(
        [sys.executable, "-c", POSTER, str(path)], capture_output=True, text=True, check=False
    )
    assert (full.stdout.split(), full.stderr) == (["refused"] * 3, "")
    (disk / "filler").unlink()
    again = subprocess.run(
        [sys.executable, "-c", POSTER, str(path)], capture_output=True, text=True, check=False
    )
    assert (again.stdout.split(), again.stderr) == (["queued"] * 3, "")
    assert_sound(path)


@pytest.mark.parametrize("there", [False, True], ids=["no outbox", "an outbox"])
def test_a_read_only_file_system_is_named(
    disk: Path, opened: Callable[[], SqliteOutbox], there: bool
) -> None:
    """Where the file system went read-only, posts are refused with its reason, nothing is hurt."""
    outbox = opened()
    if there:
        outbox.append([use(1)], now=NOON)
        outbox.close()
    assert done("mount", "-o", "remount,ro", str(disk))
    with pytest.raises(OutboxUnavailable, match=r"[Rr]ead-only"):
        outbox.append([use(2)], now=NOON)
    outbox.close()
    assert done("mount", "-o", "remount,rw", str(disk))
    outbox.append([use(3)], now=NOON)
    assert [event.total_usage for event in outbox.due(now=NOON, limit=9, max_bytes=MIB)] == (
        [1, 3] if there else [3]
    )
