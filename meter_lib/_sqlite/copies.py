"""Finds out that an outbox is a copy, and gives the copy a name of its own.

Two machines that go on with copies of one outbox give the same numbers to different events.
What tells an event from all others is its key, so nothing is billed twice or lost by that; but
whoever looks for gaps goes by the outbox's name and the number. So a copy that is opened on
another machine gets a new name for what it accepts from then on. What it accepted before keeps
the name and number that the original sends it under: it is the same event.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time

from meter_lib._sqlite.connection import transaction
from meter_lib._sqlite.ledger import accepted_events
from meter_lib.machine import machine

__all__ = ["enter_machine", "former_names"]

_logger = logging.getLogger("meter_lib")


def enter_machine(connection: sqlite3.Connection, path: str) -> None:
    """Note that the outbox is used on this machine, and whether it is a copy of another's.

    The caller holds the write lock. On return that is committed. Where the machine cannot be
    told from others, nothing changes.
    """
    here = machine()
    if _machine_of(connection) == here or here is None:
        return
    with transaction(connection):
        if _machine_of(connection) is not None:
            _rename(connection, path)
        connection.execute("UPDATE outbox SET machine = ?", (here,))


def former_names(copied_from: object) -> list[tuple[int, int, str]]:
    """Return after and up to which seq events were accepted under which name, the last one last."""
    try:
        return [
            (int(after), int(up_to), str(name))
            for after, up_to, name in json.loads(str(copied_from))
        ]
    except (ValueError, TypeError):
        return []


def _machine_of(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT machine FROM outbox").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("malformed: it has no row of its own")
    return None if row[0] is None else str(row[0])


def _rename(connection: sqlite3.Connection, path: str) -> None:
    old_name, copied_from = connection.execute(
        "SELECT outbox_id, copied_from FROM outbox"
    ).fetchone()
    new_name = os.urandom(16).hex()
    accepted = accepted_events(connection)
    names = former_names(copied_from)
    names.append((names[-1][1] if names else 0, accepted, old_name))
    connection.execute(
        "UPDATE outbox SET outbox_id = ?, epoch = epoch + 1, copied_from = ?, copied_at = ?",
        (new_name, json.dumps(names), time.time_ns() // 1_000_000),
    )
    _logger.warning(
        "%s was last used on another machine: it is a copy, or was moved here. What is recorded"
        " from now on goes under the new outbox_id %s; the events up to seq %d stay with %s. If"
        " the other machine still has it, both deliver those, each under the same key",
        path,
        new_name,
        accepted,
        old_name,
        extra={
            "event": "outbox_copied",
            "outbox": path,
            "outbox_id": new_name,
            "copied_from": old_name,
        },
    )
