"""Picks points of a recording to crash at, and what of the unsynced is left: by a seed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, NamedTuple

from meter_worker.torture.disk import Disk, sectors
from meter_worker.torture.operations import Said, Write
from meter_worker.torture.promised import promised_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meter_worker.torture.disk import Change, Fate
    from meter_worker.torture.operations import Operation
    from meter_worker.torture.promised import Promised

__all__ = ["PLACE", "Image", "image_at", "images_of", "lay_down"]

PLACE = os.path.join("new", "folder", "outbox.db")
"""Where the outbox is in the recorded folder: the folders on the way are part of the proof."""

# How often what: dropping everything that was not synced finds most; the others find the rest.
_WAYS = ("nothing", "nothing", "prefix", "prefix", "some", "some", "some", "everything")


class Image(NamedTuple):
    """The files that a crash left."""

    point: int
    """How many operations of the recording had been done."""
    seed: str
    tree: dict[str, bytes | None]
    promised: Promised


def images_of(operations: Sequence[Operation], *, count: int, seed: int) -> Iterator[Image]:
    """Yield so many crash images, in the order of their points.

    Every moment right after a receipt was given gets one, as far as the count goes: what is
    not on the disk by then is lost.
    """
    dice = random.Random(seed)  # noqa: S311  # nothing secret
    moments = [
        point for point, operation in enumerate(operations, 1) if isinstance(operation, Said)
    ]
    points = dice.sample(moments, min(len(moments), count // 2))
    points += [dice.randint(0, len(operations)) for _ in range(count - len(points))]
    disk, done = Disk(), 0
    for number, point in enumerate(sorted(points)):
        for operation in operations[done:point]:
            disk.apply(operation)
        done = point
        yield _image(disk, operations, point, f"{seed}.{number}")


def image_at(operations: Sequence[Operation], *, point: int, seed: str) -> Image:
    """Return the same image once more."""
    disk = Disk()
    for operation in operations[:point]:
        disk.apply(operation)
    return _image(disk, operations, point, seed)


def lay_down(image: Image, folder: str) -> None:
    """Write the files of an image into a folder."""
    for path, content in image.tree.items():
        place = os.path.join(folder, path)
        if content is None:
            os.mkdir(place, 0o700)
            continue
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)


def _image(disk: Disk, operations: Sequence[Operation], point: int, seed: str) -> Image:
    tree = disk.after_crash(_fate(disk.pending, random.Random(seed)))  # noqa: S311  # as above
    said = (done.text for done in operations[:point] if isinstance(done, Said))
    return Image(point, seed, tree, promised_in(said))


def _fate(pending: Sequence[Change], dice: random.Random) -> Fate:
    way = dice.choice(_WAYS)
    cut = pending[dice.randrange(len(pending))].at if pending else 0
    share = dice.choice((0.1, 0.5, 0.9))

    def fate(change: Change) -> bool | list[bool]:
        if way == "nothing":
            return False
        if way == "everything":
            return True
        if way == "prefix":
            # The one that was under way when the power went is torn.
            return change.at < cut or (change.at == cut and _torn(change, dice))
        if dice.random() >= share:
            # Its length may be known before its bytes are there.
            return _nothing_of(change) if dice.random() < 0.2 else False
        return _torn(change, dice) if dice.random() < 0.4 else True

    return fate


def _torn(change: Change, dice: random.Random) -> bool | list[bool]:
    if not isinstance(change, Write):
        return dice.random() < 0.5
    count = len(sectors(change.offset, len(change.data)))
    if dice.random() < 0.5:
        kept = dice.randint(0, count)
        return [number < kept for number in range(count)]
    return [dice.random() < 0.5 for _ in range(count)]


def _nothing_of(change: Change) -> bool | list[bool]:
    if not isinstance(change, Write):
        return False
    return [False] * len(sectors(change.offset, len(change.data)))
