"""P1: when a post returns a receipt, the event survives SIGKILL and power loss."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Prints the key of every event once it has the receipt, as a program that relies on it would.
POSTER = """
import itertools, sys
from meter_lib import MeterClient

client = MeterClient(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    print(client.post("t", "lone", "page.processed.basic", number)["idempotency_key"], flush=True)
    batch = f"batch-{sys.argv[2]}-{number}"
    receipts = client.post_many(
        {"tenant_id": "t", "device_id": batch, "meter_id": "page.processed.basic", "total_usage": n}
        for n in range(7)
    )
    print(*(receipt["idempotency_key"] for receipt in receipts), flush=True)
"""


def events_in(path: str) -> list[tuple[str, str]]:
    """Key and device of each event in the file, in their order, once the file proved sound."""
    if not os.path.exists(path):
        return []
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        rows = []
    else:
        rows = connection.execute(
            """
            SELECT seq, idempotency_key, device_id FROM events JOIN streams USING (stream_id)
            ORDER BY seq
            """
        ).fetchall()
    connection.close()
    assert [seq for seq, _, _ in rows] == list(range(1, len(rows) + 1))
    return [(key, device) for _, key, device in rows]


def test_no_receipt_is_lost_to_sigkill(outbox_path: str) -> None:
    """A poster killed at any point, again and again, leaves each event it had a receipt for."""
    dice = random.Random(1)  # noqa: S311  # nothing secret
    receipts: list[str] = []
    for life in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", POSTER, outbox_path, str(life)],
            stdout=subprocess.PIPE,
            text=True,
        ) as poster:
            assert poster.stdout is not None
            assert poster.stdout.readline() == "ready\n"
            for _ in range(dice.randrange(40) * (life > 0)):
                receipts += poster.stdout.readline().split()
            poster.kill()
            # What it said before it died counts, but not half a line.
            receipts += " ".join(
                line for line in poster.stdout.read().splitlines(keepends=True) if line[-1] == "\n"
            ).split()
        if life % 2 == 0:
            # Now and then the next poster is the one that finds what the dead one left.
            continue
        found = events_in(outbox_path)
        kept = set(receipts)
        assert [key for key, _ in found if key in kept] == receipts
        batches = Counter(device for _, device in found if device.startswith("batch-"))
        assert set(batches.values()) <= {7}
    assert len(receipts) > 100


# -- what the system is asked to do, call by call -------------------------------------


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program that shows system calls, where it is installed and allowed to look."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    trial = str(tmp_path_factory.mktemp("strace") / "trial")
    if subprocess.run([found, "-f", "-y", "-o", trial, "true"], check=False).returncode != 0:
        pytest.skip("strace is not allowed to look at processes here")
    return found


# Marks each receipt by a write to stdout, unbuffered: what comes before it came before the return.
FEW_POSTS = """
import os, signal, sys
from meter_lib import MeterClient, OutboxUnavailable

client = MeterClient(sys.argv[1])
for number in range(int(sys.argv[2])):
    try:
        key = client.post("t", "d", "page.processed.basic", number)["idempotency_key"]
    except OutboxUnavailable as error:
        os.write(1, b"refused\\n")
    else:
        os.write(1, f"receipt {key}\\n".encode())
os.kill(os.getpid(), signal.SIGKILL)
"""

_CALL = re.compile(r"(?:\d+ +)?(\w+)\((\d+)<([^>]*)>(.*)")


def calls_until_each_receipt(trace: Path) -> Iterator[list[tuple[str, str, str]]]:
    """The calls before each receipt, as (call, path, the rest of the line)."""
    calls: list[tuple[str, str, str]] = []
    for line in trace.read_text().splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        call, descriptor, path, rest = match.groups()
        if call == "write" and descriptor == "1":
            yield calls
            calls = []
        else:
            calls.append((call, path, rest))


def traced_posts(strace: str, trace: Path, path: str, posts: int, *options: str) -> list[str]:
    """Run some posts under strace and return what the poster said about each."""
    poster = subprocess.run(
        [
            *(strace, "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,write,pwrite64"),
            *options,
            *(sys.executable, "-c", FEW_POSTS, path, str(posts)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return poster.stdout.splitlines()


def syncs(calls: list[tuple[str, str, str]]) -> list[str]:
    """The paths that were put on the disk, in order."""
    return [path for call, path, _ in calls if call in ("fsync", "fdatasync")]


def test_a_post_returns_after_its_event_was_synced(strace: str, tmp_path: Path) -> None:
    """A lone post writes to the log, puts the log on the disk, once, and only then returns."""
    path = str(tmp_path / "outbox.db")
    traced_posts(strace, tmp_path / "trace", path, 6)
    _, *posts = calls_until_each_receipt(tmp_path / "trace")
    assert len(posts) == 5
    for calls in posts:
        last_call, last_path, _ = calls[-1]
        assert last_call in ("fsync", "fdatasync")
        assert last_path == f"{path}-wal"
        assert syncs(calls) == [f"{path}-wal"]
        assert ("pwrite64", f"{path}-wal") in {(call, where) for call, where, _ in calls}


def test_the_first_event_brings_its_folders_along(strace: str, tmp_path: Path) -> None:
    """A new file is only as durable as its name: each folder on the way to it is synced as well."""
    path = str(tmp_path / "new" / "folder" / "outbox.db")
    traced_posts(strace, tmp_path / "trace", path, 1)
    [calls] = calls_until_each_receipt(tmp_path / "trace")
    assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "folder")} <= set(
        syncs(calls)
    )
    assert syncs(calls)[-1] == f"{path}-wal"


@pytest.mark.parametrize("then", [0, 2], ids=["killed at once", "after two more posts"])
def test_an_event_whose_sync_failed_never_turns_up(strace: str, tmp_path: Path, then: int) -> None:
    """What was refused because the disk failed is not in the file after a crash either."""
    traced_posts(strace, tmp_path / "trace", str(tmp_path / "sound.db"), 3)
    calls = [call for part in calls_until_each_receipt(tmp_path / "trace") for call in part]
    call, _, _ = calls[-1]
    before = sum(name == call for name, _, _ in calls)
    path = str(tmp_path / "outbox.db")
    answers = traced_posts(
        *(strace, tmp_path / "trace", path, 4 + then),
        *("-e", f"inject={call}:error=EIO:when={before + 1}"),
    )
    assert [answer.split()[0] for answer in answers] == [
        *["receipt"] * 3,
        "refused",
        *["receipt"] * then,
    ]
    assert [key for key, _ in events_in(path)] == [
        answer.split()[1] for answer in answers if answer != "refused"
    ]
