"""Whether this device knows what time it is."""

from __future__ import annotations

import datetime as dt

from meter_worker.doctor.finding import Finding

__all__ = ["check_clock"]

# This version did not exist before.
_FIRST_YEAR = 2026
_LAST_YEAR = 2100


def check_clock(now: int, *, synchronised: bool | None) -> Finding:
    """Say whether the clock can be right; `now` is milliseconds since 1970."""
    time = dt.datetime.fromtimestamp(now / 1000, dt.timezone.utc)
    shown = f"{time:%Y-%m-%d %H:%M:%SZ}"
    remedy = (
        "start a time service (systemd-timesyncd, chrony or ntpd); until then events carry the"
        " time that this clock has, and certificates may be refused"
    )
    if not _FIRST_YEAR <= time.year < _LAST_YEAR:
        return Finding("clock", "warning", f"{shown}, which cannot be right", remedy)
    if synchronised is False:
        return Finding("clock", "warning", f"{shown}, and nothing keeps it right", remedy)
    return Finding("clock", "ok", shown + (", synchronised" if synchronised else ""))
