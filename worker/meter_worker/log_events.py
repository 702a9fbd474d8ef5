"""The named events of the log: their words may change, their names do not.

A line carries its name as `extra={"event": name}`, and what else a script may want to know of it
as further members of `extra`.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LOG_EVENTS", "LinesAMinute", "LogEvent", "is_news"]


class LogEvent(NamedTuple):
    """A kind of line in the log."""

    name: str
    levels: str
    fields: str
    """What it carries beside its words, in the order of the alphabet."""
    meaning: str
    """What happened, and what to do where there is something to do."""


WORKER_EVENTS = (
    LogEvent("worker_started", "INFO", "outbox pid", "The worker runs, by these settings."),
    LogEvent("delivering", "INFO", "outbox", "It holds the outbox: it is the one that delivers."),
    LogEvent(
        "outbox_held",
        "WARNING",
        "holder outbox",
        "Another process delivers from the outbox; this one takes over when that ends.",
    ),
    LogEvent(
        "delivered",
        "INFO",
        "events",
        "So many events were delivered since the last such line. At most one a minute, and one at"
        " the end.",
    ),
    LogEvent(
        "link_down",
        "WARNING ERROR DEBUG",
        "detail failures link wait_seconds",
        "A service could not be reached, or said something that is no answer; events wait. ERROR"
        " where waiting will hardly help, such as a wrong token. Written at the 1st, 2nd, 4th, 8th"
        " … failure in a row, and when the trouble changes, but not more than once in ten minutes;"
        " those between are DEBUG.",
    ),
    LogEvent(
        "compression_off",
        "WARNING",
        "",
        "The events API took a request only without METER_COMPRESSION=gzip; none is packed any"
        " more until the worker is started again.",
    ),
    LogEvent("link_up", "INFO", "failures link", "A service that was down answers again."),
    LogEvent(
        "position_lost",
        "ERROR",
        "topic",
        "With METER_SINK=kafka://…: the positions topic has lost the last record of this outbox, by"
        " its retention or by being made anew. What was stored just before may be sent again.",
    ),
    LogEvent(
        "pause_stays",
        "WARNING",
        "link wait_seconds",
        "SIGUSR1 does not end a pause that the service asked for, or that an earlier process set.",
    ),
    LogEvent(
        "dead_lettered",
        "ERROR DEBUG",
        "detail idempotency_key reason tenant_id",
        "An event was given up. See `meter-lib dead-letters show KEY`. At most ten lines a minute,"
        " those beyond are DEBUG; the list has them all.",
    ),
    LogEvent(
        "customer_unknown",
        "WARNING DEBUG",
        "detail misses tenant_id",
        "The accounts API knows no customer for a tenant, whose events wait meanwhile. Written at"
        " the 1st, 2nd, 4th, 8th … answer in a row; those between are DEBUG.",
    ),
    LogEvent(
        "times_corrected",
        "WARNING",
        "events",
        "The clock was set; events recorded before, in this boot, have the right time now.",
    ),
    LogEvent(
        "sent_one_by_one",
        "ERROR",
        "detail",
        "The answers do not say what became of each record. Set METER_DIALECT=redpanda where it is"
        " Redpanda.",
    ),
    LogEvent(
        "outbox_unavailable",
        "ERROR DEBUG",
        "detail failures",
        "The outbox cannot be read or written now; it is tried again every second. Written at the"
        " 1st, 2nd, 4th, 8th … time in a row; those between are DEBUG.",
    ),
    LogEvent("flush_now", "INFO", "", "SIGUSR1: what waits after a failure is tried at once."),
    LogEvent("settings_read", "INFO", "changed", "SIGHUP: new settings are in force."),
    LogEvent(
        "settings_refused", "ERROR", "detail", "SIGHUP: they are wrong, and the old ones stay."
    ),
    LogEvent(
        "metrics_served", "INFO", "url", "Metrics and health can be asked for at this address."
    ),
    LogEvent("stopping", "INFO", "signal", "SIGTERM or SIGINT: it ends within 10 seconds."),
    LogEvent(
        "stopped_hanging",
        "WARNING",
        "",
        "Something, such as a look-up of a name, could not be broken off; the process ended without"
        " it. Nothing is lost.",
    ),
    LogEvent(
        "delivery_fault",
        "CRITICAL DEBUG",
        "detail",
        "The worker cannot go on, and ends with 1; a supervisor starts it anew. Where the detail"
        " names nothing that can be mended, it is a fault of meter-lib: please report it, with the"
        " lines at DEBUG.",
    ),
    LogEvent("notify_failed", "DEBUG", "detail", "The service manager cannot be told something."),
)

LIBRARY_EVENTS = (
    LogEvent(
        "usage_not_recorded",
        "ERROR",
        "detail",
        "`post_meter_usage` returned None: the event is not in the outbox. One line for each.",
    ),
    LogEvent(
        "outbox_set_aside",
        "ERROR",
        "outbox",
        "The outbox was damaged; a new one goes on with what could be read.",
    ),
    LogEvent(
        "outbox_copied",
        "WARNING",
        "copied_from outbox outbox_id",
        "The outbox was last used on another machine. If that machine still has it, both deliver"
        " what was pending then, each event under its one key; what is recorded here from now on"
        " goes under a new outbox_id.",
    ),
    LogEvent(
        "dropped_oldest",
        "ERROR",
        "events outbox units",
        "The outbox is full, and METER_WHEN_FULL=drop-oldest made room. At most one line a minute.",
    ),
    LogEvent(
        "meter_unknown",
        "WARNING",
        "meter_id",
        "A meter id is not in the catalogue: check the spelling. Once for each, at most 1,000.",
    ),
    LogEvent("meters_unknown", "WARNING", "", "No further unknown meter ids are warned about."),
    LogEvent(
        "setting_unknown",
        "WARNING",
        "place variable",
        "Something named METER_… is not a setting; the nearest one is named.",
    ),
    LogEvent(
        "arguments_unused",
        "WARNING",
        "",
        "`kafka_url`, `portal_url` or `api_key` of earlier releases was given, and has no effect.",
    ),
)

LOG_EVENTS = {"meter_worker": WORKER_EVENTS, "meter_lib": LIBRARY_EVENTS}
"""By the logger that they are logged to."""


class LinesAMinute:
    """Counts lines, so that a flood of them does not wear out the disk that they are written to."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._minute = 0
        self._lines = 0

    def has_room(self, now: int) -> bool:
        """Return whether one more is within the limit, and count it. Steady milliseconds."""
        minute = now // 60_000
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        self._lines += 1
        return self._lines <= self._most


def is_news(times: int) -> bool:
    """Return whether something that has happened so many times in a row is worth a line.

    The 1st, 2nd, 4th, 8th … time is: an outage of days takes some ten lines.
    """
    return times & (times - 1) == 0
