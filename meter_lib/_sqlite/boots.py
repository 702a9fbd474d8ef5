"""What the outbox knows of time: the SQL of boots, of waits, and of times to be corrected.

The clock that counts from boot cannot be set, only the wall clock can. So a wait is kept on
a time line of one boot, and an event keeps both clocks: as long as the boot lasts, what was
recorded before the wall clock was right can be told from what was recorded after.
"""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from meter_lib.clock import FIRST_POSSIBLE_TIME, ClockReading, Uptime

__all__ = [
    "FROM_CALLER",
    "Boot",
    "begin_line_of_waits",
    "correct_times",
    "end_holds",
    "enter_boot",
    "line_of_waits",
    "mistimed",
    "time_source",
]

# Where an event time comes from: the values of events.clock that a post writes.
FROM_CALLER = 0
_FROM_CLOCK = 1
_FROM_WRONG_CLOCK = 2

# A step that counts is longer than this, plus what two milliseconds-clocks of one quartz may
# have drifted: a leap second is none, nor what the kernel slews (500 ppm at most), nor what a
# device was off by after a month without a time service. Correcting by such a step would move
# times that were right when they were recorded.
_TOLERANCE_MILLISECONDS = 2_000
_LARGEST_DRIFT = 2_000  # one part in so many

# Why an event is corrected. Its time is our clock's own, was never sent, is of this boot, and
# the wall clock has been set since; and then it could not be right, or was told to be wrong.
_MISTIMED = f"""
    clock IN ({_FROM_CLOCK}, {_FROM_WRONG_CLOCK}) AND recorded_boot = :boot
    AND customer_id IS NULL
    AND abs(recorded_uptime + :offset - recorded_at)
        > {_TOLERANCE_MILLISECONDS} + (:uptime - recorded_uptime) / {_LARGEST_DRIFT}
    AND (clock = {_FROM_WRONG_CLOCK} OR recorded_uptime <= :unsynchronised_until)
"""


class Boot(NamedTuple):
    """A boot that the outbox knows of."""

    number: int
    earlier_at: int | None
    """The latest time that the wall clock is known to have shown before it."""


def enter_boot(connection: sqlite3.Connection, boot: int) -> Boot:
    """Note, within a post, in which boot it happens."""
    known, earlier_at = connection.execute("SELECT boot, earlier_at FROM outbox").fetchone()
    if known != boot:
        (earlier_at,) = connection.execute(
            """
            SELECT max(coalesce(recorded_at, delivered_at), coalesce(delivered_at, recorded_at))
            FROM (SELECT (SELECT recorded_at FROM events ORDER BY seq DESC LIMIT 1) AS recorded_at,
                         (SELECT last_success_at FROM links WHERE name = 'events') AS delivered_at)
            """
        ).fetchone()
        connection.execute(
            """
            UPDATE outbox
            SET boot = ?, earlier_at = ?,
                boot_first_seq = 1 + max(last_seq, coalesce((SELECT max(seq) FROM events), 0))
            """,
            (boot, earlier_at),
        )
    return Boot(boot, None if earlier_at is None else int(earlier_at))


def time_source(now: int, earlier_at: int | None) -> int:
    """Return where a time comes from that is our clock's own; `now` is what it showed."""
    if now < FIRST_POSSIBLE_TIME or (earlier_at is not None and now < earlier_at):
        return _FROM_WRONG_CLOCK
    return _FROM_CLOCK


class Mistimed(NamedTuple):
    """Events that a wrong clock has stamped, up to a point in the outbox."""

    events: list[tuple[int, int]]
    """Their seqs, each with the size of its payload."""
    up_to: int
    is_last: bool


def mistimed(
    connection: sqlite3.Connection, reading: ClockReading, *, after: int, span: int
) -> Mistimed:
    """Return which of the `span` events `after` that seq are to be corrected."""
    boot, first_seq, earlier_at, last_seq = connection.execute(
        """
        SELECT boot, boot_first_seq, earlier_at, (SELECT max(seq) FROM events) FROM outbox
        """
    ).fetchone()
    now = reading.now
    is_believable = now >= FIRST_POSSIBLE_TIME and (
        reading.synchronised or earlier_at is None or now >= earlier_at
    )
    if boot != reading.uptime.boot or last_seq is None or not is_believable:
        return Mistimed([], after, is_last=True)
    start = max(after, first_seq - 1)
    rows = connection.execute(
        f"""
        SELECT seq, length(payload) FROM events
        WHERE seq > :start AND seq <= :start + :span AND {_MISTIMED}
          AND seq NOT IN (SELECT sent.value FROM unanswered, json_each(unanswered.seqs) AS sent)
        """,  # noqa: S608  # ours
        {"start": start, "span": span, **_parameters(reading)},
    )
    return Mistimed(rows.fetchall(), start + span, start + span >= last_seq)


def correct_times(
    connection: sqlite3.Connection, reading: ClockReading, seqs: Sequence[int]
) -> int:
    """Give these events, if still unsent, the time that the wall clock now says it was then."""
    corrected = [
        seq
        for seq in seqs
        if connection.execute(
            f"""
            UPDATE events SET event_time = recorded_uptime + :offset, clock = 3
            WHERE seq = :seq AND {_MISTIMED}
            """,  # noqa: S608  # ours
            {"seq": seq, **_parameters(reading)},
        ).rowcount
    ]
    # Else the same event, posted again or imported, would be taken for another.
    connection.executemany(
        """
        UPDATE known_keys SET event_time = (SELECT event_time FROM events WHERE seq = ?1)
        WHERE seq = ?1
        """,
        [(seq,) for seq in corrected],
    )
    return len(corrected)


def _parameters(reading: ClockReading) -> dict[str, int | None]:
    uptime = reading.uptime.milliseconds
    return {
        "boot": reading.uptime.boot,
        "uptime": uptime,
        "offset": reading.now - uptime,
        "unsynchronised_until": reading.unsynchronised_until,
    }


def line_of_waits(connection: sqlite3.Connection, uptime: Uptime) -> int | None:
    """Return the offset of the time line of waits, or None where it is of another boot."""
    boot, offset = connection.execute("SELECT waits_boot, waits_offset FROM outbox").fetchone()
    return int(offset) if boot is not None and boot == uptime.boot else None


def end_holds(connection: sqlite3.Connection, *, most: int) -> bool:
    """Make some held streams due at once; return whether that were all."""
    return (
        connection.execute(
            """
            UPDATE streams SET held_until = 0
            WHERE stream_id IN (SELECT stream_id FROM streams WHERE held_until > 0 LIMIT ?)
            """,
            (most,),
        ).rowcount
        < most
    )


def begin_line_of_waits(connection: sqlite3.Connection, now: int, uptime: Uptime) -> int:
    """Bring the waits for peers onto a time line of this boot; return its offset.

    A wait lasts until it would have by the wall clock, but never longer than it was meant
    to: what that clock says may be wrong, then as now.
    """
    for table, until, since in (
        ("links", "next_attempt_at", "last_error_at"),
        ("accounts", "ask_again_at", "answered_at"),
    ):
        connection.execute(
            f"""
            UPDATE {table}
            SET {until} = :now + max(0, min({until} - :now, {until} - coalesce({since}, {until})))
            WHERE {until} IS NOT NULL
            """,  # noqa: S608  # as above
            {"now": now},
        )
    offset = now - uptime.milliseconds
    connection.execute("UPDATE outbox SET waits_boot = ?, waits_offset = ?", (uptime.boot, offset))
    return offset
