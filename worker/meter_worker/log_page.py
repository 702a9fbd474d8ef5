"""The events of the log as a page of Markdown: `python -m meter_worker.log_page`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from meter_worker.log_events import LOG_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meter_worker.log_events import LogEvent

__all__ = ["page"]

_PAGE = """\
# The log

Made from the table in `worker/meter_worker/log_events.py` by `make docs`; do not edit.

The worker logs to stderr, a line a record. `METER_LOG_LEVEL` says from which level on,
`METER_LOG_FORMAT` how: `plain`,

    2026-11-22T15:52:01.123Z WARNING meter_worker: events: no delivery for 0.7 s, … [link_down]

or `json`, an object a line with `time`, `level`, `logger`, `message`, the name as `event`, and the
fields of that event. Words may change from release to release; names and fields do not.

What repeats is written sparingly: an outage of days takes some ten lines, not one for each attempt.
`METER_LOG_LEVEL=DEBUG` shows each. How things stand now is told by `meter-lib status`, whatever the
log has left out.

No line has a secret in it. Tenants and idempotency keys are named; usage and metadata are not.

## Of the worker: logger `meter_worker`

{meter_worker}

## Of the library: logger `meter_lib`

The library logs to this one logger and installs no handler. A program that has set up no logging
sees its warnings and errors on stderr, as Python does it.

{meter_lib}
"""


def page() -> str:
    """Return the page."""
    return _PAGE.format_map({logger: _table(events) for logger, events in LOG_EVENTS.items()})


def _table(events: Iterable[LogEvent]) -> str:
    lines = ["| event | level | fields | meaning |", "|---|---|---|---|"]
    for event in events:
        fields = ", ".join(f"`{field}`" for field in event.fields.split()) or "-"
        levels = event.levels.replace(" ", ", ")
        lines.append(f"| `{event.name}` | {levels} | {fields} | {event.meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
