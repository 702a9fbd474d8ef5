"""A caller's own commit that fails, or is under way while others open the outbox."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

from meter_lib import MeterClient
from tests.durability.test_failing_operations import numbers_in, preloaded

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["preloaded"]

_COMMITTING = """
import ctypes, errno, json, os, shutil, sqlite3, sys, time
from meter_lib import MeterClient

folder, nth = sys.argv[1], int(sys.argv[2])
path = os.path.join(folder, "outbox.db")
disk = ctypes.CDLL(None)
client = MeterClient(path)
client.post("t", "d", "page.processed.basic", 1)
connection = sqlite3.connect(path)
client.post("t", "d", "page.processed.basic", 2, connection=connection)
disk.fail_from(ctypes.c_long(nth), errno.EIO, 0)
try:
    connection.commit()
    is_committed = True
except sqlite3.OperationalError:
    is_committed = False
has_failed = disk.failures_so_far() > 0
disk.fail_from(ctypes.c_long(-1), 0, 0)
while client._outbox._database._looking:
    time.sleep(0.001)
os.mkdir(os.path.join(folder, "crashed"))
for end in ("", "-wal"):
    shutil.copy(f"{path}{end}", os.path.join(folder, "crashed", f"outbox.db{end}"))
client.post("t", "d", "page.processed.basic", 3, connection=connection)
connection.commit()
print(json.dumps([has_failed, is_committed]))
os._exit(0)
"""


def test_what_a_callers_commit_could_not_sync_is_gone_for_good(
    preloaded: str,  # the fixture
    tmp_path: Path,
) -> None:
    """After each operation of a commit has failed, a crash brings nothing of it back."""
    nth, failures = 0, 0
    while True:
        nth += 1
        folder = tmp_path / str(nth)
        folder.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", _COMMITTING, str(folder), str(nth)],
            env={
                **os.environ,
                "METER_CONFIG": os.devnull,
                "LD_PRELOAD": preloaded,
                "FAILING_FOLDER": str(folder),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        has_failed, is_committed = json.loads(ran.stdout)
        expected = [1, 2] if is_committed else [1]
        assert numbers_in(str(folder / "crashed" / "outbox.db")) == expected
        assert numbers_in(str(folder / "outbox.db")) == [*expected, 3]
        failures += not is_committed
        if not has_failed:
            break
    # The frames, one by one, and their sync.
    assert failures > 2


_OPENING = """
import sys
from meter_lib import MeterClient
from meter_lib._sqlite.salvage import log_check
connect = log_check.connect
def said(*arguments, **options):
    print("waits", flush=True)
    return connect(*arguments, **options)
log_check.connect = said
MeterClient(sys.argv[1]).post("t", "d", "m", 4)
"""
_HEADERS = 96
"""The bytes at the front of the index of a log that say how far it counts, twice."""


def _in_index(index: str, headers: bytes = b"") -> bytes:
    """Write or read the headers: elsewhere, for closing the file here would drop SQLite's locks."""
    program = """
import os, sys
index = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(index, bytes.fromhex(sys.argv[2]), 0)
print(os.pread(index, int(sys.argv[3]), 0).hex())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, index, headers.hex(), str(_HEADERS)],
        capture_output=True,
        text=True,
        check=True,
    )
    return bytes.fromhex(ran.stdout)


def test_commits_under_way_are_not_taken_for_a_damaged_log(tmp_path: Path) -> None:
    """Two that come between the looks of one who opens the outbox are seen, or waited for."""
    path = str(tmp_path / "outbox.db")
    with MeterClient(path) as client:
        client.post("t", "d", "m", 1)
        with (
            contextlib.closing(sqlite3.connect(path, isolation_level=None)) as theirs,
            contextlib.closing(sqlite3.connect(path, isolation_level=None)) as lock,
        ):
            index = f"{path}-shm"
            before = _in_index(index)
            for number in (2, 3):
                theirs.execute("BEGIN")
                client.post("t", "d", "m", number, connection=theirs)
                theirs.execute("COMMIT")
            after = _in_index(index)
            # As it was a moment ago: its frames are written, and do not count yet.
            lock.execute("BEGIN IMMEDIATE")
            _in_index(index, before)
            opening = subprocess.Popen(
                [sys.executable, "-c", _OPENING, path],
                env={**os.environ, "METER_CONFIG": os.devnull},
                stdout=subprocess.PIPE,
                text=True,
            )
            assert opening.stdout is not None
            assert opening.stdout.readline() == "waits\n"
            _in_index(index, after)
            lock.execute("ROLLBACK")
            assert opening.wait() == 0
            opening.stdout.close()
    assert numbers_in(path) == [1, 2, 3, 4]
    assert "outbox.db.damaged" not in "".join(os.listdir(tmp_path))
