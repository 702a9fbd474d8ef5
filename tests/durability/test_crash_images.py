"""Power cuts: whatever part of the unsynced writes a disk keeps, no acknowledged event is lost.

And the same method shows the losses of programs that do not sync: else it would prove nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meter_lib import MeterClient
from meter_worker.torture.disk import Disk
from meter_worker.torture.examining import examine
from meter_worker.torture.images import PLACE, Image, image_at, lay_down
from meter_worker.torture.operations import ROOT, Enter, Said, Sync, Write
from meter_worker.torture.posting import SCENARIOS, command
from meter_worker.torture.promised import promised_in
from meter_worker.torture.recording import Recording, record, recorded
from tests.durability.crashing import FACTOR, keys_in, looked_at, told, tree_at, verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meter_worker.torture.operations import Operation

pytestmark = pytest.mark.usefixtures("_strace")

IMAGES = 390


def recording_of(folder: Path, arguments: list[str]) -> Recording:
    """Record one of the posting programs on an outbox in a new folder."""
    (folder / "root").mkdir()
    return record(arguments, root=str(folder / "root"), trace=str(folder / "trace"))


def place(folder: Path) -> str:
    """Where it has its outbox."""
    return str(folder / "root" / PLACE)


@pytest.mark.parametrize("what", SCENARIOS)
def test_no_power_cut_loses_an_acknowledged_event(what: str, tmp_path: Path) -> None:
    """Every crash image of a posting program opens, holds what was acknowledged, and goes on."""
    for seed in range(FACTOR):
        folder = tmp_path / str(seed)
        folder.mkdir()
        recording = recording_of(folder, command(what, place(folder), seed=seed))
        wrong = verdicts(recording.trace, recording.operations, count=IMAGES, seed=seed)
        assert not wrong, told(wrong)


@pytest.mark.parametrize("what", SCENARIOS)
def test_a_recording_accounts_for_every_byte(what: str, tmp_path: Path) -> None:
    """What is rebuilt from a recording, nothing being lost, is what the program really left."""
    recording = recording_of(tmp_path, command(what, place(tmp_path)))
    disk = Disk()
    for operation in recording.operations:
        disk.apply(operation)
    assert disk.after_crash(lambda _: True) == tree_at(str(tmp_path / "root"))


def test_an_image_can_be_built_again(tmp_path: Path) -> None:
    """A recording, a point and a seed are all that it takes to see a failure once more."""
    recording = recording_of(tmp_path, command("reopening", place(tmp_path)))
    again = recorded(recording.trace)
    point = len(again.operations) * 3 // 4
    seeds = [f"1.{number}" for number in range(30)]
    first = [image_at(recording.operations, point=point, seed=seed) for seed in seeds]
    assert first == [image_at(again.operations, point=point, seed=seed) for seed in seeds]
    assert len({str(image.tree) for image in first}) > 5


def test_a_torn_commit_is_not_taken_for_damage(tmp_path: Path) -> None:
    """Where all of a commit but one write is on the disk, there is nothing to set aside."""
    recording = recording_of(tmp_path, command("lone", place(tmp_path)))
    disk, aside, images = Disk(), list[str](), 0
    log = nodes_named(recording.operations, ".db-wal")
    for point, operation in enumerate(recording.operations):
        writes = [change for change in disk.pending if isinstance(change, Write)]
        missing = [change for change in writes if change.file in log][1:2]
        if missing and isinstance(operation, Sync):
            tree = disk.after_crash(lambda change, missing=missing: change not in missing)
            said = [one.text for one in recording.operations[:point] if isinstance(one, Said)]
            folder = tmp_path / str(point)
            folder.mkdir()
            lay_down(Image(point, "", tree, promised_in(said)), str(folder))
            found = examine(str(folder / PLACE), promised_in(said))
            assert found.lost == []
            aside += found.faults
            images += 1
        disk.apply(operation)
    assert images > 100
    assert aside == []


def test_a_killed_commit_is_not_taken_for_damage_while_others_post(tmp_path: Path) -> None:
    """A program killed during its sync leaves the outbox whole for those who have it open."""
    path = str(tmp_path / "outbox.db")
    event = {"tenant_id": "t", "device_id": "d", "meter_id": "page.processed.basic"}
    with MeterClient(path) as client:
        keys = [client.post(**event, total_usage=1)["idempotency_key"]]
        kill = "inject=fdatasync:signal=SIGKILL:when=1"
        posting = command("lone", path)
        subprocess.run(
            [
                *("strace", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync"),
                *("-e", kill, *posting),
            ],
            check=False,
        )
        subprocess.run(command("reopening", path), stdout=subprocess.PIPE, check=True)
        keys.append(client.post(**event, total_usage=2)["idempotency_key"])
    assert [name for name in os.listdir(tmp_path) if "damaged" in name] == []
    assert set(keys) <= keys_in(path)


# -- teeth ----------------------------------------------------------------------------


def test_it_shows_what_is_lost_at_durability_normal(tmp_path: Path) -> None:
    """Posts that are not synced do get lost, and nothing else is wrong: METER_DURABILITY=normal."""
    recording = recording_of(tmp_path, command("lone", place(tmp_path), durability="normal"))
    wrong = verdicts(recording.trace, recording.operations, count=120)
    assert sum(bool(lost) for lost, _, _ in wrong) > 40
    # What stands behind a hole in the log is salvaged: the outbox is set aside for that.
    others = [
        [fault for fault in faults if not fault.endswith("was set aside as damaged")]
        for _, faults, _ in wrong
    ]
    assert [faults for faults in others if faults] == []


def test_it_shows_what_is_damaged_without_any_sync(tmp_path: Path) -> None:
    """With synchronous=OFF events are lost and files are damaged."""
    _, _, _, *rest = command("lone", place(tmp_path))
    dishonest = str(Path(__file__).with_name("dishonest.py"))
    recording = recording_of(tmp_path, [sys.executable, dishonest, *rest])
    assert not any(isinstance(operation, Sync) for operation in recording.operations)
    wrong = verdicts(recording.trace, recording.operations, count=120)
    assert sum(bool(lost) for lost, _, _ in wrong) > 40
    assert sum(any("plain SQLite says" in fault for fault in faults) for _, faults, _ in wrong) > 5


def nodes_named(operations: Iterable[Operation], suffix: str) -> set[int]:
    """The files with such a name; "/" stands for the folders."""
    entered = [operation for operation in operations if isinstance(operation, Enter)]
    if suffix == "/":
        return {ROOT, *(entry.node for entry in entered if entry.is_folder)}
    return {entry.node for entry in entered if entry.name.endswith(suffix)}


@pytest.mark.parametrize(
    ("what", "unsynced", "count"),
    # Of a first post, few of the images show it: most are of the making of the file.
    [("first", "/", 600), ("lone", ".db-wal", 120), ("lone", "outbox.db", 120)],
)
def test_every_kind_of_sync_is_needed(what: str, unsynced: str, count: int, tmp_path: Path) -> None:
    """Folders, log and database: where the disk only pretends to sync one of them, it shows."""
    recording = recording_of(tmp_path, command(what, place(tmp_path)))
    pretended = nodes_named(recording.operations, unsynced)
    operations = [
        operation
        for operation in recording.operations
        if not (isinstance(operation, Sync) and operation.node in pretended)
    ]
    assert len(operations) < len(recording.operations)
    assert any(lost for lost, _, _ in verdicts(recording.trace, operations, count=count))


def test_a_receipt_before_the_sync_shows(tmp_path: Path) -> None:
    """A program that gives the receipt just before its last sync instead of after it is found."""
    recording = recording_of(tmp_path, command("lone", place(tmp_path)))
    hasty = list(recording.operations)
    for number, (operation, after) in enumerate(pairwise(recording.operations)):
        if isinstance(operation, Sync) and isinstance(after, Said):
            hasty[number : number + 2] = [after, operation]
    assert hasty != recording.operations
    assert any(lost for lost, _, _ in verdicts(recording.trace, hasty, count=120))


def test_an_image_is_looked_at_by_two(tmp_path: Path) -> None:
    """Plain SQLite and the library agree on what is in the last image: everything."""
    recording = recording_of(tmp_path, command("settling", place(tmp_path)))
    image = image_at(recording.operations, point=len(recording.operations), seed="1.1")
    assert looked_at(image) == ([], [])
    assert len(image.promised.acknowledged) > len(image.promised.leaving) > 20
