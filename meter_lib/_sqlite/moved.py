"""What a move leaves beside an outbox file, and whom it keeps out.

NAME.moved             beside the place it moved from: where to. Counts where there is no NAME
NAME.moved-WHEN        the file itself, as it was when it moved; nothing opens it
NAME.arriving          beside the place it moves to: being filled, or left unfinished
NAME.arrived           whole, and not in use before the old one is closed
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from meter_lib._sqlite.files import create_or_open, file_bytes, sync_folder
from meter_lib.errors import OutboxMoved, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_lib.moving import Departure

__all__ = [
    "ARRIVED",
    "ARRIVING",
    "forget_departure",
    "keep_out",
    "read_departure",
    "write_departure",
]

ARRIVING = ".arriving"
ARRIVED = ".arrived"
_MOVED = ".moved"


def keep_out(path: str) -> None:
    """Raise where a file at `path` must not be opened or made, because an outbox is moving."""
    if os.path.lexists(f"{path}{ARRIVED}"):
        raise OutboxUnavailable(
            f"an outbox is being moved to {path}, and is not all there; if meter-lib move has ended"
            f" before its time, run it again as it was"
        )
    told = _told(path)
    if told is not None:
        raise OutboxMoved(
            f"the outbox at {path} has moved to {told['to']}: set METER_OUTBOX to that place"
            f" (to begin a new outbox here, remove {path}{_MOVED})"
        )


def read_departure(path: str) -> Departure | None:
    """Return where the outbox that was at `path` has moved to, or None where it has not."""
    from meter_lib.moving import Departure  # noqa: PLC0415  # only to move

    told = _told(path)
    return None if told is None else Departure(**told)


def _told(path: str) -> Mapping[str, str] | None:
    if file_bytes(path):
        return None
    try:
        with open(f"{path}{_MOVED}", encoding="utf-8") as file:
            told: Mapping[str, str] = json.load(file)
        return {name: told[name] for name in ("to", "outbox_id", "kept")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise OutboxUnavailable(
            f"{path}{_MOVED} should tell where the outbox has moved to, and cannot be read"
        ) from error


def write_departure(path: str, to: str, outbox_id: str) -> Departure:
    """Write, durably, where the outbox at `path` is about to go. It counts once that has gone."""
    stem = f"{path}{_MOVED}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    kept, number = stem, 1
    while os.path.lexists(kept):
        number += 1
        kept = f"{stem}.{number}"
    from meter_lib.moving import Departure  # noqa: PLC0415  # only to move

    departure = Departure(to, outbox_id, kept)
    unfinished = f"{path}{_MOVED}.new"
    descriptor = create_or_open(unfinished)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(departure._asdict()).encode() + b"\n", 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(unfinished, f"{path}{_MOVED}")
    sync_folder(os.path.dirname(path))
    return departure


def forget_departure(path: str) -> None:
    """Remove what tells that an outbox was here: there is one again."""
    if os.path.lexists(f"{path}{_MOVED}"):
        os.unlink(f"{path}{_MOVED}")
