"""`meter-lib torture`, its storm of kills, and what its examination sees."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meter_worker.torture.examining import Examination, examine
from meter_worker.torture.failure import TortureFailed
from meter_worker.torture.killing import KillStorm
from meter_worker.torture.posting import command
from meter_worker.torture.promised import Promised, promised_in
from meter_worker.torture.run import torture
from tests.durability.crashing import FACTOR, keys_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def promised(outbox_path: str) -> Promised:
    """What a program said that has posted some batches and ended."""
    arguments = command("batches", outbox_path, seed=3)
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return promised_in([said])


def change(path: str, sql: str) -> None:
    """Do to a file what no program of ours does."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql)
    connection.close()


def test_what_is_whole_passes(outbox_path: str, promised: Promised) -> None:
    """An outbox that holds what was acknowledged is as it should be, and is empty afterwards."""
    assert keys_in(outbox_path) == promised.acknowledged
    assert examine(outbox_path, promised) == Examination([], [])
    assert keys_in(outbox_path) == set()


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("DELETE FROM events WHERE seq = 5", "the counts do not add up"),
        ("UPDATE events SET payload = replace(payload, ';', ':') WHERE seq = 4", "event 4 is"),
        ("UPDATE events SET total_usage = 7 WHERE seq = 4", "event 4 is not whole"),
        ("UPDATE outbox SET delivered_events = 1", "the counts do not add up"),
        ("UPDATE outbox SET dead_events = 1", "pending and 1 dead were counted"),
        ("DROP TABLE events", "it cannot be used"),
    ],
)
def test_what_is_wrong_is_seen(outbox_path: str, promised: Promised, sql: str, fault: str) -> None:
    """An event that is missing, changed or miscounted does not pass."""
    change(outbox_path, sql)
    found = examine(outbox_path, promised)
    assert not found.passed
    assert any(fault in told for told in found.faults), found


def test_a_lost_event_is_named(outbox_path: str, promised: Promised) -> None:
    """The keys of acknowledged events that are nowhere are given."""
    change(outbox_path, "DELETE FROM events WHERE seq IN (1, 6)")
    lost = promised.acknowledged - keys_in(outbox_path)
    assert examine(outbox_path, promised).lost == sorted(lost)
    assert len(lost) == 2


def test_an_event_that_may_have_been_delivered_is_not_lost(
    outbox_path: str, promised: Promised
) -> None:
    """What was about to be settled may be gone, as far as the counts say so."""
    change(outbox_path, "DELETE FROM events WHERE seq = 1")
    change(outbox_path, "UPDATE outbox SET delivered_events = 1")
    leaving = promised.acknowledged - keys_in(outbox_path)
    assert examine(outbox_path, promised._replace(leaving=leaving)) == Examination([], [])
    assert len(leaving) == 1


def test_half_a_batch_is_seen(outbox_path: str, promised: Promised) -> None:
    """Events posted together are there together, or not at all."""
    change(
        outbox_path,
        "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
    )
    assert any(" only " in fault for fault in examine(outbox_path, promised).faults)


def test_no_kill_loses_an_acknowledged_event(tmp_path: Path) -> None:
    """Processes that post, deliver, bury, replay and purge are killed at any moment, one by one."""
    for seed in range(FACTOR):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with KillStorm(str(folder), seed=seed) as storm:
            killed = storm.strike(30, struck=lambda: None)
        assert killed.kills == 30
        assert killed.acknowledged > 100
        assert killed.examination == Examination([], [])


def test_a_device_is_tortured_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """The command reports, ends with 0 where nothing was lost, and leaves all as it was."""
    live = tmp_path / "outbox.db"
    live.write_bytes(b"the live one")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "meter_worker", "torture", "--outbox", str(live)),
            *("--kills", "3", "--images", "16", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    report = json.loads(ran.stdout)
    assert (report["kills"], report["lost"], report["faults"]) == (3, 0, [])
    assert report["passed"] is True
    assert report["images"] == (0 if report["why_no_images"] else 16)
    assert 0 < report["sync_milliseconds"]["median"] <= report["sync_milliseconds"]["p99"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "outbox.db": b"the live one"
    }


@pytest.mark.parametrize("outbox", ["outbox.db", "not/yet/outbox.db"])
def test_a_report_is_for_people(tmp_path: Path, outbox: str) -> None:
    """Without --json it says in words what was tried, before the first event as well."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "meter_worker", "torture", "--kills", "1", "--images", "0"),
            *("--outbox", str(tmp_path / outbox)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\nlost " in ran.stdout
    assert ran.stdout.endswith("\nEverything that was acknowledged is there.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["", "there", "link"])
def test_the_live_outbox_is_not_in_the_way(tmp_path: Path, folder: str) -> None:
    """A folder that exists, or would hold the outbox, is refused and left as it is."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "meter_worker", "torture", "--kills", "1", "--images", "0"),
            *("--outbox", str(tmp_path / "outbox.db"), "--folder", str(tmp_path / folder)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "is removed afterwards" in ran.stderr
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


def test_an_outbox_to_come_is_not_in_the_way_either(tmp_path: Path) -> None:
    """A folder that does not exist yet is refused as well where the outbox is to be in it."""
    with pytest.raises(TortureFailed, match="would hold the outbox"):
        torture(
            str(tmp_path / "new"),
            outbox=str(tmp_path / "new" / "deep" / "outbox.db"),
            kills=1,
            images=0,
            seed=1,
            progress=lambda _: None,
        )
    assert list(tmp_path.iterdir()) == []
