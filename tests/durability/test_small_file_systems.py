"""A file system that is full, read-only or under a quota: posts say so, and deliveries go on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meter_lib import MeterClient, OutboxUnavailable, Settings, post_meter_usage
from meter_worker.sandbox import Sandbox
from tests.durability.programs import METER, Programs, counts_in, status_of
from tests.small_disks import MIB, done, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVENT = {
    "tenant_id": "t",
    "device_id": "d",
    "meter_id": METER,
    "total_usage": 1,
    "metadata": {"pad": "x" * 900},
}


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    with small_disk(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A backend."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def programs(disk: Path, sandbox: Sandbox) -> Iterator[Programs]:
    """Processes with an outbox on that disk that could become larger than the disk."""
    with Programs(disk, stream_url=sandbox.url, accounts_url=sandbox.url) as made:
        yield made


def post_until_refused(path: str) -> list[str]:
    """Post until an event is refused, and return the keys of those that were not."""
    keys: list[str] = []
    with MeterClient(path, settings=Settings(outbox=path)) as client:
        with contextlib.suppress(OutboxUnavailable):
            while True:
                keys += [receipt["idempotency_key"] for receipt in client.post_many([EVENT] * 20)]
        with contextlib.suppress(OutboxUnavailable):
            while True:
                keys.append(client.post(**EVENT)["idempotency_key"])
    return keys


def fill(disk: Path) -> None:
    """Leave not a byte, as another program's log would."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def bytes_of(path: str) -> int:
    """What an outbox takes on the disk, with all the files beside it."""
    folder, name = os.path.split(path)
    return sum(
        entry.stat().st_blocks * 512 for entry in os.scandir(folder) if entry.name.startswith(name)
    )


def test_a_full_disk_takes_no_event_and_keeps_none_from_delivery(
    disk: Path, programs: Programs, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts are refused, what was accepted is delivered with no byte free, and space returns."""
    accepted = post_until_refused(programs.path)
    fill(disk)
    assert len(accepted) > 1000
    monkeypatch.setenv("METER_OUTBOX", programs.path)
    assert post_meter_usage(**EVENT) is None
    largest = bytes_of(programs.path)

    assert programs.result("flush", "--timeout", "30") == 0, programs.logs
    status = status_of(programs.path)
    assert (status.accepted, status.delivered, status.pending, status.dead) == (
        *(len(accepted), len(accepted)),
        *(0, 0),
    )
    assert sorted(sandbox.keys) == sorted(accepted)
    assert bytes_of(programs.path) < largest // 3

    (disk / "filler").unlink()
    with MeterClient(programs.path) as client:
        after = client.post(**EVENT)["idempotency_key"]
    assert programs.result("flush", "--timeout", "30") == 0
    assert after in sandbox.keys
    assert counts_in(programs.path).delivered == len(accepted) + 1


def test_a_disk_that_turns_read_only_is_survived(disk: Path, programs: Programs) -> None:
    """Posts are refused while it is remounted, and go on after that, seq without gap."""
    with MeterClient(programs.path) as client:
        keys = [client.post(**EVENT)["idempotency_key"] for _ in range(3)]
        # No file may be open for writing while it is remounted by hand.
        client.close()
        assert done("mount", "-o", "remount,ro", str(disk))
        with pytest.raises(OutboxUnavailable):
            client.post(**EVENT)
        assert done("mount", "-o", "remount,rw", str(disk))
        keys += [client.post(**EVENT)["idempotency_key"] for _ in range(2)]
    found = counts_in(programs.path)
    assert [(row.seq, row.key) for row in found.rows] == list(enumerate(keys, 1))


def test_no_program_is_killed_for_a_full_disk_of_small_blocks(tmp_path: Path) -> None:
    """However little is free on a file system of blocks of 1 KiB, programs say so, and live on."""
    with small_disk("ext4", tmp_path, block_bytes=1024) as disk, Programs(disk) as programs:
        with MeterClient(programs.path) as client:
            client.post_many([EVENT] * 300)
        codes = []
        for free_kib in range(2, 26, 2):
            fill(disk)
            with (disk / "filler").open("ab") as filler:
                filler.truncate(max(0, filler.tell() - free_kib * 1024))
            codes.append(programs.result("status"))
            (disk / "filler").unlink()
        assert set(codes) <= {0, 1}


QUOTA_POSTER = """
import resource, sys
from meter_lib import MeterClient, OutboxUnavailable

client = MeterClient(sys.argv[1])
event = dict(tenant_id="t", device_id="d", meter_id="page.processed.basic", total_usage=1,
             metadata={"pad": "x" * 900})
keys = [client.post(**event)["idempotency_key"]]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
refused = 0
while refused < 3:
    try:
        keys.append(client.post(**event)["idempotency_key"])
    except OutboxUnavailable:
        refused += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
keys.append(client.post(**event)["idempotency_key"])
print(*keys)
"""


@pytest.mark.parametrize("limit", [400_000, MIB + 77])
def test_a_file_that_may_not_grow_refuses_posts_and_loses_none(tmp_path: Path, limit: int) -> None:
    """At a limit of the size of files, like a quota, posts are refused; without it they go on."""
    path = str(tmp_path / "outbox.db")
    ran = subprocess.run(
        [sys.executable, "-c", QUOTA_POSTER, path, str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    keys = ran.stdout.split()
    assert len(keys) > 100
    found = counts_in(path)
    assert [(row.seq, row.key) for row in found.rows] == list(enumerate(keys, 1))
