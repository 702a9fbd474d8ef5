"""What is in the outbox, whether it is whole, and who works with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from meter_worker.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_lib.outbox import OutboxStatus
    from meter_lib.upkeep import Inspection

__all__ = [
    "check_books",
    "check_copy",
    "check_elsewhere",
    "check_engine",
    "check_integrity",
    "check_set_aside",
    "check_worker",
]


def check_integrity(inspection: Inspection) -> Finding:
    """Say whether the file is whole."""
    if inspection.problems:
        more = f" and {len(inspection.problems) - 1} more" if len(inspection.problems) > 1 else ""
        return Finding(
            "integrity",
            "fault",
            f"{inspection.problems[0]}{more} ({inspection.method})",
            "meter-lib doctor --salvage sets the file aside, and puts a new outbox with all that"
            " can be read in its place",
        )
    if not inspection.is_complete:
        return Finding(
            "integrity",
            "warning",
            f"nothing is wrong as far as was looked ({inspection.method}, out of time)",
            "meter-lib doctor --timeout SECONDS looks for longer",
        )
    return Finding("integrity", "ok", f"whole ({inspection.method})")


def check_books(inspection: Inspection) -> Finding:
    """Say whether each accepted event is in exactly one place."""
    accepted, pending, dead = inspection.accepted, inspection.pending, inspection.dead
    delivered, removed = inspection.delivered, inspection.removed
    found = (
        f"{accepted:,} accepted, {pending:,} pending, {dead:,} dead, {delivered:,} delivered,"
        f" {removed:,} removed"
    )
    if inspection.problems or not inspection.is_complete:
        why = "the file is damaged" if inspection.problems else "there was no time"
        return Finding("books", "ok", f"not counted: {why}")
    if accepted != pending + dead + delivered + removed:
        return Finding(
            "books",
            "fault",
            f"{found}: these do not add up",
            "meter-lib doctor --salvage balances them, and keeps the file as it is aside",
        )
    return Finding("books", "ok", found)


def check_engine(engine: str) -> Finding:
    """Say whether the library that stores the events has a defect that matters."""
    found = re.fullmatch(r"SQLite (\d+)\.(\d+)\.(\d+)(?:\.\d+)?", engine)
    version = tuple(int(part) for part in found.groups()) if found else ()
    mended = (
        version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    )
    if not version or version < (3, 7) or mended:
        return Finding("engine", "ok", engine)
    return Finding(
        "engine",
        "warning",
        f"{engine} can lose a commit that meets a checkpoint of another process"
        " (https://www.sqlite.org/wal.html, the WAL-reset bug)",
        "nothing need be done: meter-lib never lets the two meet. Programs of others must not"
        " write to the outbox",
    )


def check_set_aside(files: Sequence[str]) -> Finding:
    """Say which damaged files are kept."""
    if not files:
        return Finding("set aside", "ok", "nothing was damaged")
    return Finding(
        "set aside",
        "warning",
        ", ".join(files),
        "what could be read of them is in the outbox. See to the cause (the disk, its cable, its"
        " power); remove these files and their -wal when nobody wants to look at them any more",
    )


def check_copy(status: OutboxStatus) -> Finding:
    """Say whether this outbox was another machine's before."""
    if status.copied_from is None:
        return Finding("copy", "ok", "no other machine's outbox, as far as can be told")
    return Finding(
        "copy",
        "warning",
        f"it was outbox {status.copied_from} of another machine, and is {status.outbox_id} here",
        "nothing need be done where it was moved. Where the other machine has it still, both"
        " deliver what was in it then, each event under the same key: the backend must drop"
        " repeated keys. Make images of devices without an outbox",
    )


def check_worker(holder: int | None) -> Finding:
    """Say whether anybody delivers."""
    if holder is None:
        return Finding(
            "worker",
            "warning",
            "not running",
            "nothing is delivered until one is started: meter-lib worker",
        )
    return Finding("worker", "ok", f"running, process {holder}" if holder else "running")


def check_elsewhere(others: Sequence[OutboxStatus]) -> Finding:
    """Say whether events wait in an outbox that nobody delivers from; `others` are such."""
    waiting = [other for other in others if other.pending]
    if not waiting:
        return Finding("other outboxes", "ok", "none at the other default places has events")
    return Finding(
        "other outboxes",
        "fault",
        "events wait where no worker delivers them: "
        + ", ".join(f"{other.location} ({other.pending:,} pending)" for other in waiting),
        "program and worker must agree on METER_OUTBOX. To deliver these: meter-lib flush --outbox "
        + waiting[0].location,
    )
