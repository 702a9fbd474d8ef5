"""What is told to the service manager that started us: the notify protocol of systemd.

The only reader of NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which are no settings:
nobody but the service manager sets them.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ServiceManager"]

_logger = logging.getLogger("meter_worker")

# A service manager that does not read must not hold up a delivery.
_SEND_SECONDS = 1.0


class ServiceManager:
    """Whoever started the worker and may want to know how it is; often nobody does."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        path = environ.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte of an abstract socket. Others (vsock) are for machines.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self.listens = path.startswith(("/", "@"))
        """Whether there is anybody to be told."""
        self.watchdog_seconds = _watchdog_seconds(environ) if self.listens else None
        """How long the loop may make no progress before we are killed, or None."""

    def ready(self) -> None:
        """The outbox is held or waited for; or the settings have been read again."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The settings are being read again; `ready` follows."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The worker has been told to end, and is about to."""
        self._tell("STOPPING=1\nSTATUS=stopping")

    def status(self, line: str) -> None:
        """How it goes, for people."""
        self._tell(f"STATUS={line}")

    def alive(self) -> None:
        """The loop makes progress."""
        self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        if not self.listens:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.connect(self._address)
                sender.send(message.encode())
        except OSError as error:
            _logger.debug(
                "the service manager cannot be told: %s",
                error,
                extra={"event": "notify_failed", "detail": str(error)},
            )


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    # A process that we are a child of may have left its own watchdog in the environment.
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not (microseconds.isascii() and microseconds.isdigit()):
        return None
    return int(microseconds) / 1_000_000 or None
