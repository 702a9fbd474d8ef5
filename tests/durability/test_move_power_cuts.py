"""A power cut while an outbox moves: its events are in one place, and a second run ends it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from meter_lib import OutboxUnavailable
from meter_worker.torture.images import image_at, lay_down
from meter_worker.torture.operations import Said
from meter_worker.torture.recording import record
from tests.durability.crashing import FACTOR, RAM
from tests.integration.moving import opened, run_move, seen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meter_worker.torture.operations import Operation

pytestmark = pytest.mark.usefixtures("_strace")

IMAGES_A_POINT = 3
_MOVING = """
import contextlib, os, sys
from meter_lib import MeterClient, Settings
from meter_lib.moving import move
from meter_lib.opening import open_arriving, open_leaving

def say(*keys):
    os.write(1, f"ack {' '.join(keys)}\\n".encode())

old, new = (os.path.join(sys.argv[1], name, "outbox.db") for name in ("old", "new"))
with MeterClient(old) as client:
    for number in range(20):
        say(client.post("t", "d", "page.processed.basic", number)["idempotency_key"])
settings = Settings(outbox=old)
with (
    contextlib.closing(open_leaving(settings)) as source,
    contextlib.closing(open_arriving(settings.with_outbox(new))) as destination,
):
    say("begun")
    move(source, destination, progress=lambda *_: None)
    say("moved")
"""


def places(folder: str) -> tuple[str, str]:
    """The old place and the new one."""
    return os.path.join(folder, "old", "outbox.db"), os.path.join(folder, "new", "outbox.db")


def pending(path: str) -> list[str] | None:
    """What would be delivered from a place by a worker that opens it, or None where none can."""
    if not os.path.exists(path):
        return None
    try:
        with opened(path) as outbox:  # mends what a power cut leaves, as a worker would
            outbox.accepted()
    except OutboxUnavailable:
        return None
    there = seen(path)
    return there.keys if there and there.keys else None


def test_no_power_cut_loses_an_event_that_moves(tmp_path: Path) -> None:
    """None is lost, none is in two places; and once the move has ended, all are at the new one."""
    # What a move leaves names places: each image is laid down where the program ran.
    with tempfile.TemporaryDirectory(dir=RAM) as folder:
        root = os.path.join(folder, "root")
        os.mkdir(root)
        recording = record(
            [sys.executable, "-c", _MOVING, root], root=root, trace=str(tmp_path / "trace")
        )
        look_at_images(recording.operations, root)


def look_at_images(operations: Sequence[Operation], root: str) -> None:
    """Crash after each operation of the move, and look at what may be left."""
    begun = next(
        point
        for point, operation in enumerate(operations)
        if isinstance(operation, Said) and "begun" in operation.text
    )
    states: set[tuple[bool, bool]] = set()
    for point in range(begun + 1, len(operations) + 1):
        for number in range(IMAGES_A_POINT * FACTOR):
            image = image_at(operations, point=point, seed=f"move.{number}")
            acknowledged = image.promised.acknowledged - {"begun", "moved"}
            shutil.rmtree(root)
            os.mkdir(root)
            lay_down(image, root)
            old, new = places(root)
            found = [pending(old), pending(new)]
            states.add((found[0] is not None, found[1] is not None))
            assert [set(keys) for keys in found if keys is not None] in ([acknowledged], [])
            if "moved" in image.promised.acknowledged:
                assert found[1] is not None
            run_move(old, new)
            assert (set(pending(new) or ()), pending(old)) == (acknowledged, None)
    assert states == {(True, False), (False, False), (False, True)}
