"""What a move is tried with: an outbox in which everything has happened, and movers that die."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import meter_lib
from meter_lib import MeterClient, OutboxUnavailable, Settings
from meter_lib._sqlite.contents import rows_of
from meter_lib.moving import Moved, move
from meter_lib.opening import open_arriving, open_leaving, open_outbox
from meter_lib.outbox import (
    Account,
    Burial,
    Deferral,
    Selector,
    Settlement,
    Unanswered,
)
from meter_worker.parcels import Parcel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from meter_lib.outbox import DueEvent, Outbox

EVENT: dict[str, Any] = {"tenant_id": "t", "device_id": "d", "meter_id": "page.processed.basic"}
TIME = 1_790_000_000_000
NOW = 1_791_000_000_000
CUSTOMER = '"c-1"'
LARGEST = 2**63 - 1

# What a mover runs: it is killed before each line of these.
_FOLDER = Path(meter_lib.__file__).parent
_MOVERS = {
    str(_FOLDER / name)
    for name in (
        "moving.py",
        "_postgres/arriving.py",
        "_postgres/leaving.py",
        "_postgres/moved.py",
        "_postgres/mover.py",
        "_sqlite/arriving.py",
        "_sqlite/leaving.py",
        "_sqlite/leaving_file.py",
        "_sqlite/moved.py",
    )
}
# Posts until the outbox has moved, and says which keys have a receipt.
POSTING = """
import sys
from meter_lib import MeterClient, OutboxMoved
client = MeterClient(sys.argv[1])
number = 0
while True:
    number += 1
    try:
        client.post("t", "d", "page.processed.basic", 1, idempotency_key=f"live-{number}")
    except OutboxMoved as error:
        print(error)
        break
    print(f"live-{number}", flush=True)
"""


@contextlib.contextmanager
def opened(path: str, *, read_only: bool = False) -> Iterator[Outbox]:
    """The outbox at a path, opened as a program does."""
    settings = Settings(outbox=path)
    with contextlib.closing(open_outbox(settings, read_only=read_only)) as outbox:
        yield outbox


def post(path: str, *keys: str | None, **arguments: Any) -> None:
    """Record events under these keys."""
    with MeterClient(path) as client:
        client.post_many(
            EVENT | {"total_usage": 1, "timestamp": TIME} | arguments | {"idempotency_key": key}
            for key in keys
        )


def run_move(source: str, destination: str) -> Moved:
    """Move an outbox as the command does."""
    settings = Settings(outbox=source)
    with (
        contextlib.closing(open_leaving(settings)) as leaving,
        contextlib.closing(open_arriving(settings.with_outbox(destination))) as arriving,
    ):
        return move(leaving, arriving, progress=lambda *_: None)


def fill(path: str) -> None:
    """Make an outbox with an event in each state that there is."""
    post(path, "delivered", "dead", "purged", "deferred", "refused", "sent", total_usage=LARGEST)
    post(path, "sent-2", None, None, meter_id="rule.executed.small", metadata={"x": "\u00fc\n"})
    with opened(path) as outbox:
        events = {
            event.idempotency_key: event
            for event in outbox.due(now=NOW, limit=100, max_bytes=10**9)
        }
        sent = Unanswered("r", CUSTOMER, [events["sent"], events["sent-2"]])
        outbox.begin([sent])
        outbox.settle(
            Settlement(
                delivered=[events["delivered"]],
                deferred=[Deferral(events["deferred"], NOW + 1000, counts=True)],
                refused_alone=[events["refused"]],
                buried=[
                    Burial(events[key], "rejected", "no\N{SNOWMAN}", answers=2)
                    for key in ("dead", "purged")
                ],
            ),
            now=NOW,
        )
        outbox.purge([events["purged"].seq])
        outbox.replay([events["dead"].seq], now=NOW)
        (again,) = [
            event
            for event in outbox.due(now=NOW, limit=100, max_bytes=10**9)
            if event.idempotency_key == "dead"
        ]
        outbox.settle(Settlement(buried=[Burial(again, "too_large", "")]), now=NOW)
        outbox.set_account("t", Account(CUSTOMER, NOW, 0))
        outbox.set_link(outbox.link("accounts")._replace(failures=2, down_since=NOW))


def everything_in(path: str) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of all tables, those of a file that nobody writes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found: dict[str, list[tuple[object, ...]]] = {}
        for table, columns, rows in rows_of(connection):
            found.setdefault(table, [columns]).extend(rows)
        return found


class Seen(NamedTuple):
    """What a flusher would see of an outbox."""

    keys: list[str]
    """Of the pending events, in the order of their numbers."""
    accepted: int


def seen(path: str) -> Seen | None:
    """Return what is pending at a place, or None where nothing can be delivered from there."""
    if not (path.startswith("postgresql:") or os.path.exists(path)):
        return None
    try:
        with opened(path, read_only=True) as outbox:
            keys = [event.idempotency_key for event in outbox.pending_events(Selector())]
            return Seen(keys, outbox.accepted())
    except OutboxUnavailable:
        return None


def sent_again(path: str) -> list[tuple[str, list[str]]]:
    """Return the requests that go again, each with its key and the texts of its records."""
    with opened(path) as outbox:
        return [
            (request.idempotency_key, _records(outbox, request.events))
            for request in outbox.unanswered()
        ]


def _records(outbox: Outbox, events: list[DueEvent]) -> list[str]:
    parcel = Parcel.of(events, outbox_id=outbox.outbox_id, customer_id=CUSTOMER)
    return list(parcel.records)


def mover_killed_before(line: int, source: str, destination: str) -> bool:
    """Move in a process that is killed before its n-th line of code; return whether it has so many.

    A line that is run again counts once.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in _MOVERS:
            return None
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    code = 1
    with contextlib.suppress(BaseException):
        sys.settrace(trace)
        run_move(source, destination)
        sys.settrace(None)
        code = 0
    os._exit(code)
