"""The whole torture of a device: in a folder of its own, which is removed afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from meter_lib import Settings
from meter_lib.file_systems import file_system_of
from meter_lib.opening import open_outbox
from meter_worker.torture.examining import examine
from meter_worker.torture.failure import TortureFailed
from meter_worker.torture.images import PLACE, images_of, lay_down
from meter_worker.torture.killing import KillStorm
from meter_worker.torture.machine import machine, sync_times
from meter_worker.torture.posting import SCENARIOS, command
from meter_worker.torture.recording import record, why_no_recording

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meter_lib.file_systems import FileSystem
    from meter_worker.torture.examining import Examination
    from meter_worker.torture.machine import SyncTimes

__all__ = ["Report", "torture"]

# Images are files of a moment: in memory, where that can be had, they wear no flash.
_MEMORY = "/dev/shm"  # noqa: S108  # made by mkdtemp there
_MOST_FAULTS_TOLD = 20


class Report(NamedTuple):
    """What a torture has shown. `lost` counts acknowledged events that were nowhere."""

    machine: str
    engine: str
    file_system: FileSystem
    sync_milliseconds: SyncTimes
    kills: int
    killed_acknowledged: int
    images: int
    why_no_images: str | None
    lost: int
    faults: list[str]
    """What else was wrong, each with what it takes to see it again; the first ones."""

    @property
    def passed(self) -> bool:
        """Whether nothing was lost and nothing wrong."""
        return not self.lost and not self.faults


def torture(
    folder: str,
    *,
    outbox: str,
    kills: int,
    images: int,
    seed: int,
    progress: Callable[[int], object],
) -> Report:
    """Torture outboxes of its own in `folder`, and return what that has shown.

    `folder` must not exist yet, and is removed afterwards. `outbox` is the live one, which is
    not touched. `progress` is told how many kills and images are done since the last time.
    Raises `TortureFailed` where it cannot be carried out.
    """
    with _private(folder, outbox):
        times = sync_times(folder)
        with KillStorm(folder, seed=seed) as storm:
            killed = storm.strike(kills, struck=lambda: progress(1))
        lost, faults = len(killed.examination.lost), list(killed.examination.faults)
        reason = why_no_recording()
        looked_at = 0
        for number, what in enumerate(SCENARIOS if reason is None else ()):
            share = images * (number + 1) // len(SCENARIOS) - looked_at
            for again, found in _images(folder, what, share, seed):
                lost += len(found.lost)
                faults += [f"{fault} ({again})" for fault in found.faults]
                progress(1)
            looked_at += share
        return Report(
            machine=machine(),
            engine=_engine(os.path.join(folder, "engine.db")),
            file_system=file_system_of(folder),
            sync_milliseconds=times,
            kills=killed.kills,
            killed_acknowledged=killed.acknowledged,
            images=looked_at,
            why_no_images=reason,
            lost=lost,
            faults=faults[:_MOST_FAULTS_TOLD],
        )


def _engine(path: str) -> str:
    with contextlib.closing(open_outbox(Settings(outbox=path))) as outbox:
        return outbox.inspect(seconds=1).engine


def _images(folder: str, what: str, count: int, seed: int) -> Generator[tuple[str, Examination]]:
    if not count:
        return
    root, trace = (os.path.join(folder, f"{what}.{name}") for name in ("root", "trace"))
    os.mkdir(root, 0o700)
    recording = record(command(what, os.path.join(root, PLACE), seed=seed), root=root, trace=trace)
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else folder
    for image in images_of(recording.operations, count=count, seed=seed):
        with tempfile.TemporaryDirectory(prefix="meter-torture-", dir=parent) as place:
            lay_down(image, place)
            found = examine(os.path.join(place, PLACE), image.promised)
        yield f"{what}, point {image.point}, seed {image.seed}", found


@contextlib.contextmanager
def _private(folder: str, outbox: str) -> Generator[None]:
    """Make the folder, and remove it afterwards."""
    place, live = os.path.realpath(folder), os.path.realpath(outbox)
    if os.path.commonpath([place, live]) == place:
        raise TortureFailed(
            f"{folder} would hold the outbox {outbox}, and is removed afterwards: name another one"
        )
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        raise TortureFailed(
            f"{folder} exists already: name a folder that does not, as it is removed afterwards"
        ) from None
    try:
        yield
    finally:
        shutil.rmtree(folder)
