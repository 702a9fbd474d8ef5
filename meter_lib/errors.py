"""Every error that this library raises, by what the caller can do about it.

    MeterError
    ├── InvalidUsage         an argument's value is wrong; not recorded      (a ValueError)
    │   └── KeyConflict      the idempotency key belongs to another event; not recorded
    ├── InvalidUsageType     an argument's type is wrong; not recorded       (a TypeError)
    ├── InvalidSetting       a setting is wrong; nothing was started         (a ValueError)
    ├── OutboxUnavailable    the outbox could not do it; nothing has changed
    │   ├── OutboxFull       its limit or the disk is reached  → deliver, purge or make room
    │   ├── OutboxMissing    there is no outbox at that place  → post first, or name another
    │   ├── OutboxMoved      meter-lib move took it elsewhere  → name the place it moved to
    │   └── SchemaTooNew     a newer version made it           → upgrade; it was left untouched
    └── OutboxHeld           another flusher delivers from it      → wait, or stop that one

The backend saying no is not an error: it is an outcome of a delivery.
"""

from __future__ import annotations

__all__ = [
    "InvalidSetting",
    "InvalidUsage",
    "InvalidUsageType",
    "KeyConflict",
    "MeterError",
    "OutboxFull",
    "OutboxHeld",
    "OutboxMissing",
    "OutboxMoved",
    "OutboxUnavailable",
    "SchemaTooNew",
]


class MeterError(Exception):
    """The root: whoever catches this has caught everything that meter-lib raises."""


class InvalidUsage(MeterError, ValueError):
    """An argument has a value that no usage event can have. Nothing was recorded."""


class KeyConflict(InvalidUsage):
    """The idempotency key is known with other content. Only the first event was recorded."""

    def __init__(self, message: str, *, index: int = 0) -> None:
        super().__init__(message)
        self.index = index
        """Which of the events posted together it was, from 0."""


class InvalidUsageType(MeterError, TypeError):
    """An argument has a type that no usage event can have. Nothing was recorded."""


class InvalidSetting(MeterError, ValueError):
    """A setting has a value that cannot be meant. Nothing was started and no file was made."""


class OutboxUnavailable(MeterError):
    """The outbox could not do what was asked. What it had accepted before is unharmed."""


class OutboxFull(OutboxUnavailable):
    """The limit of the outbox, or the disk, is reached. The event was not recorded."""


class OutboxMissing(OutboxUnavailable):
    """There is no outbox where one was to be read. None was made."""


class OutboxMoved(OutboxUnavailable):
    """The outbox that was here has moved to another place. Nothing was recorded here."""


class SchemaTooNew(OutboxUnavailable):
    """A newer version of meter-lib made this outbox. It was not touched."""


class OutboxHeld(MeterError):
    """Another flusher holds the outbox. It delivers; this one did nothing."""
