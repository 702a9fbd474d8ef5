"""Where the log goes: to stderr, a line a record, in words or as JSON."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING, Any

from meter_lib.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["escaped", "log_as_set", "log_briefly"]

# What loading the settings may have to say, before it is known how to say it.
_MOST_EARLY_RECORDS = 1_000
# Whatever else a record has was given to it as `extra`.
_OF_EACH_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def log_briefly() -> None:
    """Log warnings as a command says them: without time and source."""
    _install(_StderrHandler(_Brief()), "WARNING")


def log_as_set(load: Callable[[], Settings]) -> Settings:
    """Load settings and log as they say from then on, what loading them said included.

    Where loading raises, it is said in words, at the default level.
    """
    early = MemoryHandler(_MOST_EARLY_RECORDS, flushLevel=sys.maxsize)
    _install(early, "DEBUG")
    level, form = Settings.log_level.default, Settings.log_format.default
    try:
        settings = load()
        level, form = settings.log_level, settings.log_format
    finally:
        handler = _StderrHandler(_Json() if form == "json" else _Plain())
        handler.setLevel(level)
        early.setTarget(handler)
        early.close()
        _install(handler, level)
    return settings


def escaped(text: str) -> str:
    """Return the text with everything that a terminal might obey written out, as `repr` does."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _install(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    for installed in root.handlers[:]:
        # Only those of ours: a host that calls us may have its own.
        if isinstance(installed, (_StderrHandler, MemoryHandler)):
            root.removeHandler(installed)
    root.addHandler(handler)
    root.setLevel(level)


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at the time."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or nothing where stderr is gone: that must not end a delivery."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  # whatever it is, logging has a place for it
            self.handleError(record)


class _Brief(logging.Formatter):
    """`meter-lib: warning: what happened`."""

    def format(self, record: logging.LogRecord) -> str:
        return f"meter-lib: {record.levelname.lower()}: {escaped(record.getMessage())}"


class _Plain(logging.Formatter):
    """`2026-11-22T15:52:01.123Z INFO meter_worker: what happened [its_name]`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {escaped(record.getMessage())}"
        event = vars(record).get("event")
        if event is not None:
            line += f" [{event}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    """An object a line, with the same members and those that the line carries beside its words."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, Any] = {  # Any: what a line carries is its own affair
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _OF_EACH_RECORD:
                members.setdefault(name, value)
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        # What others log may carry anything.
        return json.dumps(members, default=str)


def _time(record: logging.LogRecord) -> str:
    time = dt.datetime.fromtimestamp(record.created, dt.timezone.utc)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
