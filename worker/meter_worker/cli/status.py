"""`meter-lib status`: what is in the outbox, and how delivery is going."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_worker.cli.backlog import backlog_bar
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import (
    counted,
    field_lines,
    print_json,
    shown_bytes,
    shown_instant,
    shown_seconds,
)
from meter_worker.cli.watching import Line, print_lines, watched
from meter_worker.logs import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib.outbox import Link, OutboxStatus


@click.command()
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
@json_option
@outbox_options
def status(*, watch: bool, as_json: bool, outbox: str | None, config: str | None) -> None:
    """Show what is in the outbox, and how delivery is going.

    Sentences below the table say what needs attention. Only reads: an outbox that does not exist
    is not made, and nobody has to wait for it. With --watch, a terminal is drawn anew every
    second; a pipe gets one table after the other, with --json one object a line.
    """
    settings = settings_from(config, outbox=outbox)
    with contextlib.closing(open_outbox(settings, read_only=True)) as opened:

        def look() -> StatusView:
            return StatusView(opened.status(), opened.holder(), SystemClock().now())

        def lines() -> list[Line]:
            view = look()
            return view.lines(backlog_bar(opened, view.oldest_recorded_at, view.now))

        if watch:
            watched((lambda: print_json(look().as_json())) if as_json else lines)
        elif as_json:
            print_json(look().as_json())
        else:
            print_lines(lines())


class StatusView:
    """The status of an outbox as it is shown. `holder` is the process that delivers, 0 unknown."""

    def __init__(self, status: OutboxStatus, holder: int | None, now: int) -> None:
        self._status = status
        self._holder = holder
        self.now = now
        self.oldest_recorded_at = status.oldest_recorded_at

    def as_json(self) -> dict[str, Any]:  # Any: what JSON can carry
        """Return all there is to know; instants are milliseconds since 1970."""
        status = self._status
        failed = [link for link in status.links if link.last_error_at is not None]
        latest = max(failed, key=lambda link: link.last_error_at or 0, default=None)
        events = next((link for link in status.links if link.name == "events"), None)
        return {
            "outbox": status.location,
            "outbox_id": status.outbox_id,
            "schema_version": status.schema_version,
            "accepted": status.accepted,
            "pending": status.pending,
            "dead": status.dead,
            "delivered": status.delivered,
            "removed": status.removed,
            "refused": status.refused,
            "held_streams": status.held_streams,
            "oldest_pending_seconds": self._oldest_pending_seconds(),
            "bytes": status.bytes,
            "next_attempt_at": status.next_attempt_at,
            "last_success_at": events.last_success_at if events else None,
            "last_error": latest.last_error if latest else None,
            "worker": {
                "running": self._holder is not None,
                "pid": self._holder or None,
                **({} if status.workers is None else {"count": status.workers}),
            },
            "set_aside": list(status.set_aside),
            "copied_from": status.copied_from,
            "copied_at": status.copied_at,
            "links": [link._asdict() for link in status.links],
        }

    def lines(self, backlog: str | None) -> list[Line]:
        """Return a table, with a picture of the backlog, and a sentence for each thing that
        needs attention.
        """
        status = self._status
        oldest = self._oldest_pending_seconds()
        table = field_lines(
            [
                ("outbox", status.location),
                *(
                    [
                        (
                            "copied from",
                            f"{status.copied_from}, found at {shown_instant(status.copied_at)}",
                        )
                    ]
                    if status.copied_from is not None
                    else []
                ),
                ("size", shown_bytes(status.bytes)),
                ("worker", self._worker()),
                ("accepted", f"{status.accepted:,}"),
                (
                    "pending",
                    f"{status.pending:,}"
                    + (f", the oldest for {shown_seconds(oldest)}" if oldest is not None else ""),
                ),
                *([("", backlog)] if backlog else []),
                ("dead letters", f"{status.dead:,}"),
                ("delivered", f"{status.delivered:,}"),
                ("removed", f"{status.removed:,}"),
                *((f"link {link.name}", _shown_link(link)) for link in status.links),
            ]
        )
        attention = [Line(escaped(sentence), is_warning=True) for sentence in self._attention()]
        return [*map(Line, table), *([Line("")] if attention else []), *attention]

    def _worker(self) -> str:
        if self._holder is None:
            return "not running"
        if self._status.workers is not None and self._status.workers > 1:
            return f"{self._status.workers} running"
        return f"running, process {self._holder}" if self._holder else "running"

    def _oldest_pending_seconds(self) -> float | None:
        recorded_at = self.oldest_recorded_at
        # A clock that was set back makes no negative age.
        return None if recorded_at is None else max(0, self.now - recorded_at) / 1000

    def _attention(self) -> Iterator[str]:
        status = self._status
        if self._holder is None:
            yield (
                "No worker is running: nothing is delivered until one is started"
                " (meter-lib worker)."
            )
        if status.set_aside:
            yield (
                f"{counted(len(status.set_aside), 'damaged file')} set aside, with all that could"
                f" be read of it in this outbox: {', '.join(status.set_aside)}."
            )
        for link in status.links:
            if link.down_since is not None:
                yield (
                    f"The link to {link.name} is down since {shown_instant(link.down_since)},"
                    f" {counted(link.failures, 'failure')} in a row: {link.last_error}. Next"
                    f" attempt: {shown_instant(link.next_attempt_at)}."
                )
        if status.held_streams:
            yield f"{counted(status.held_streams, 'stream')} waiting for another attempt."
        if status.refused:
            yield (
                f"{counted(status.refused, 'pending event')} refused by the backend, which counts"
                " only if it accepts another event and then refuses this one again: waiting for"
                " that proof."
            )
        if status.dead:
            yield (
                f"{counted(status.dead, 'dead letter')}: meter-lib dead-letters list shows why they"
                " are no longer tried."
            )


def _shown_link(link: Link) -> str:
    state = "up" if link.down_since is None else "down"
    return f"{state}, last success {shown_instant(link.last_success_at)}"
