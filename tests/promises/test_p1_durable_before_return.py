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


def test_a_new_outbox_is_whole_before_it_has_its_name(strace: str, tmp_path: Path) -> None:
    """The file of a new outbox is synced, then renamed; with its log, the folder is synced."""
    folder = str(tmp_path)
    path = f"{folder}/outbox.db"
    subprocess.run(
        [
            *(strace, "-f", "-y", "-o", str(tmp_path / "trace")),
            *("-e", "trace=fsync,fdatasync,rename,write,pwrite64,unlink,openat"),
            *(sys.executable, "-c", FEW_POSTS, path, "1"),
        ],
        stdout=subprocess.PIPE,
        check=False,
    )
    wanted = {
        "made": rf'rename\("{path}\.new", "{path}"',
        "its content synced": rf"fsync\(\d+<{path}\.new>",
        "both names synced": rf"fsync\(\d+<{folder}>",
        "log made": rf'openat\(.*"{path}-wal", O_RDWR\|O_CREAT',
        "log synced": rf"fdatasync\(\d+<{path}-wal>|fsync\(\d+<{path}-wal>",
        "receipt": r'write\(1<.*"receipt ',
    }
    happened = [
        what
        for line in (tmp_path / "trace").read_text().splitlines()
        for what, pattern in wanted.items()
        if re.search(pattern, line)
    ]
    assert happened == [
        "its content synced",
        "made",
        "log made",
        "both names synced",
        "log synced",
        "log synced",
        "receipt",
    ]


# The calls by which a new outbox is made and first written to.
MAKING = ["openat", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "ftruncate"]


@pytest.mark.parametrize("call", MAKING)
def test_a_kill_while_an_outbox_is_made_leaves_none_or_a_whole_one(
    strace: str, tmp_path: Path, call: str
) -> None:
    """Killed at any of the calls by which it comes to be, an outbox takes events afterwards."""
    path = str(tmp_path / "outbox.db")
    for when in (1, 2, 3, 5, 8, 13, 21, 34):
        killed = traced_posts(
            *(strace, tmp_path / "trace", path, 2),
            *("-P", path, "-P", f"{path}.new", "-P", f"{path}-wal", "-P", str(tmp_path)),
            *("-e", f"trace={call},write", "-e", f"inject={call}:signal=KILL:when={when}"),
        )
        receipts = [answer.split()[1] for answer in killed]
        receipts += [
            answer.split()[1]
            for answer in traced_posts(strace, tmp_path / "trace", path, 1)
            if answer != "refused"
        ]
        found = [key for key, _ in events_in(path)]
        assert [key for key in found if key in receipts] == receipts
        assert receipts
        for leftover in tmp_path.glob("outbox.db*"):
            leftover.unlink()


def test_what_a_log_without_its_file_holds_goes_on(tmp_path: Path) -> None:
    """Where only a log was left behind, a new outbox begins with its events, and is sound."""
    path = str(tmp_path / "outbox.db")
    answers: list[str] = []
    for posts in ("5", "2"):
        poster = subprocess.run(
            [sys.executable, "-c", FEW_POSTS, path, posts],
            capture_output=True,
            text=True,
            check=False,
        )
        answers += poster.stdout.splitlines()
        if posts == "5":
            assert os.path.getsize(f"{path}-wal") > 0
            os.unlink(path)
    assert len(answers) == 7
    assert [key for key, _ in events_in(path)] == [answer.split()[1] for answer in answers]


def test_a_post_does_not_ask_the_log_for_its_times(strace: str, tmp_path: Path) -> None:
    """A lone post looks at no attribute of the log: the next sync would have to write them."""
    path = str(tmp_path / "outbox.db")
    subprocess.run(
        [
            *(strace, "-f", "-y", "-o", str(tmp_path / "trace"), "-e", "trace=%%stat,write"),
            *(sys.executable, "-c", FEW_POSTS, path, "6"),
        ],
        stdout=subprocess.PIPE,
        check=False,
    )
    lines = (tmp_path / "trace").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if '"receipt ' in line)
    assert [line for line in lines[first:] if "outbox.db-wal" in line] == []
    assert any(f'"{path}"' in line for line in lines[first:])


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 5, 6, 9])
def test_no_post_is_accepted_on_a_log_that_may_have_a_hole(
    strace: str, tmp_path: Path, failures: int
) -> None:
    """However often the disk fails, what has a receipt is there and what was refused is not."""
    path = str(tmp_path / "outbox.db")
    answers = traced_posts(
        *(strace, tmp_path / "trace", path, 9),
        *("-P", f"{path}-wal"),
        *("-e", "trace=fsync,fdatasync,write"),
        *("-e", f"inject=fsync,fdatasync:error=EIO:when=5..{4 + failures}"),
    )
    said = [answer.split()[0] for answer in answers]
    assert (said[:3], said[3]) == (["receipt"] * 3, "refused")
    assert "receipt" in said[4:] or failures > 5
    keys = [answer.split()[1] for answer in answers if answer != "refused"]
    # The next process: it repairs what the last one could not.
    answers = traced_posts(strace, tmp_path / "trace", path, 2)
    keys += [answer.split()[1] for answer in answers]
    assert [key for key, _ in events_in(path)] == keys
    assert os.path.getsize(f"{path}.lock") == 0


def test_the_next_process_repairs_a_log_that_the_last_one_could_not(
    strace: str, tmp_path: Path
) -> None:
    """A log that may have a hole is emptied into the database before the next event goes there."""
    path = str(tmp_path / "outbox.db")
    answers = traced_posts(
        *(strace, tmp_path / "trace", path, 6),
        *("-P", f"{path}-wal", "-e", "trace=fsync,fdatasync,write"),
        *("-e", "inject=fsync,fdatasync:error=EIO:when=5+"),
    )
    assert [answer.split()[0] for answer in answers] == ["receipt"] * 3 + ["refused"] * 3
    assert os.path.getsize(f"{path}.lock") == 1
    traced_posts(strace, tmp_path / "trace", path, 1)
    [calls] = calls_until_each_receipt(tmp_path / "trace")
    assert f"{path}" in syncs(calls)
    assert os.path.getsize(f"{path}.lock") == 0


# Eight threads at once, each of which says what became of its event.
MANY_THREADS = """
import os, signal, sys, threading
from meter_lib import MeterClient, OutboxUnavailable

client = MeterClient(sys.argv[1])
together = threading.Barrier(8)

def post():
    together.wait()
    for number in range(int(sys.argv[2])):
        try:
            key = client.post("t", "d", "page.processed.basic", number)["idempotency_key"]
        except OutboxUnavailable as error:
            os.write(1, b"refused\\n")
        else:
            os.write(1, f"receipt {key}\\n".encode())

threads = [threading.Thread(target=post) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["1", "2..3", "2..6", "3+"])
def test_a_failed_sync_refuses_all_that_shared_it(strace: str, tmp_path: Path, when: str) -> None:
    """Of threads that share a commit whose sync fails, each is told, and no event turns up."""
    path = str(tmp_path / "outbox.db")
    [first] = traced_posts(strace, tmp_path / "trace", path, 1)
    poster = subprocess.run(
        [
            # It counts the calls of each thread by itself.
            *(strace, "-f", "-y", "-o", str(tmp_path / "trace"), "-P", f"{path}-wal"),
            *("-e", "trace=fsync,fdatasync"),
            *("-e", f"inject=fsync,fdatasync:error=EIO:when={when}"),
            # Eight threads share a commit at most, so some thread commits four times at least.
            *(sys.executable, "-c", MANY_THREADS, path, "30"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    answers = poster.stdout.splitlines()
    assert len(answers) == 8 * 30
    assert "refused" in answers
    kept = {answer.split()[1] for answer in [first, *answers] if answer != "refused"}
    assert {key for key, _ in events_in(path)} == kept


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
