"""What the crash images are looked at with: plain SQLite first, then the library."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meter_worker.torture.examining import examine
from meter_worker.torture.images import PLACE, images_of, lay_down

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meter_worker.torture.images import Image
    from meter_worker.torture.operations import Operation
    from meter_worker.torture.promised import Promised

FACTOR = int(os.environ.get("TORTURE_FACTOR", "1"))
"""How much longer than in CI to go on: `make torture` sets it."""

RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # for speed alone


class Verdict(NamedTuple):
    """What is wrong with an image."""

    lost: list[str]
    faults: list[str]
    again: str
    """How to build it once more."""


def verdicts(
    trace: str, operations: Sequence[Operation], *, count: int, seed: int = 1
) -> list[Verdict]:
    """Look at so many images, and return what is wrong with those that are not right."""
    wrong: list[Verdict] = []
    for image in images_of(operations, count=count, seed=seed):
        lost, faults = looked_at(image)
        if lost or faults:
            again = f"python -m meter_worker.torture {trace} {image.point} {image.seed} /tmp/image"
            wrong.append(Verdict(lost, faults, again))
    return wrong


def looked_at(image: Image) -> tuple[list[str], list[str]]:
    """Return the keys of the events that an image has lost, and what else is wrong with it."""
    with tempfile.TemporaryDirectory(dir=RAM) as folder:
        for name in ("plain", "library"):
            os.mkdir(os.path.join(folder, name))
            lay_down(image, os.path.join(folder, name))
        lost, faults = plain_look(os.path.join(folder, "plain", PLACE), image.promised)
        found = examine(os.path.join(folder, "library", PLACE), image.promised)
    return sorted({*lost, *found.lost}), [*faults, *found.faults]


def plain_look(path: str, promised: Promised) -> tuple[list[str], list[str]]:
    """Look at a file without the library: which acknowledged events are missing, what is broken."""
    try:
        keys = keys_in(path)
    except (sqlite3.Error, AssertionError) as error:
        return [], [f"plain SQLite says: {error}"]
    return sorted(promised.acknowledged - promised.leaving - keys), []


def keys_in(path: str) -> set[str]:
    """The keys of the events in a file, once SQLite found it whole; none where there is none."""
    if not os.path.exists(path):
        return set()
    connection = sqlite3.connect(path)
    try:
        [*problems] = connection.execute("PRAGMA integrity_check")
        assert problems == [("ok",)], problems[:3]
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
            rows = connection.execute("SELECT idempotency_key, seq FROM events ORDER BY seq")
            found = [key for key, _ in rows]
            assert len(found) == len(set(found)), "a key is there twice"
            return set(found)
        return set()
    finally:
        connection.close()


def told(wrong: Iterable[Verdict]) -> str:
    """Say what is wrong with the first few."""
    return "\n".join(
        f"lost {len(lost)} acknowledged; {faults[:3]}: {again}"
        for lost, faults, again in list(wrong)[:5]
    )


def tree_at(root: str) -> dict[str, bytes | None]:
    """The files that a recorded program really left, less what is no part of an image."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in Path(root).rglob("*")
        if not path.name.endswith("-shm")
    }
