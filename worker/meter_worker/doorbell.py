"""Rings when somebody writes to an outbox, where the system tells: inotify, on Linux.

It spares an idle flusher most of its looks, and an event most of its wait for the next one. It
is a hint and no more: nothing is lost where it does not ring, only found later.
"""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Doorbell"]

_MODIFIED, _DELETED_SELF, _MOVED_SELF = 0x2, 0x400, 0x800
_OVERFLOWED, _IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
_READ_BYTES = 64 * 1024


class Doorbell:
    """Calls `ring` in a thread of its own, once for each `arm`, after the next write."""

    def __init__(self, outbox: str, ring: Callable[[], None]) -> None:
        # The log, of which every commit writes; the file itself may be replaced.
        self._folder, name = os.path.split(os.path.realpath(outbox))
        self._log = os.fsencode(f"{name}-wal")
        self._ring = ring
        self._armed = threading.Event()
        self._watch = -1
        self._descriptor = -1
        self._library: Any = None  # Any: the C library, which has no types
        self.has_rung = False
        """Whether it is known to work: where a file system does not tell, it never does."""

    def open(self) -> None:
        """Begin to listen, where that is possible; the folder is there."""
        try:
            # Needed here only, and only by those who deliver.
            import ctypes  # noqa: PLC0415  # see above

            self._library = ctypes.CDLL(None)
            self._descriptor = self._library.inotify_init1(os.O_CLOEXEC)
        except (ImportError, OSError, AttributeError):  # no Linux, or a Python built without
            return
        if self._descriptor >= 0:
            mask = _MODIFIED | _DELETED_SELF | _MOVED_SELF
            self._watch = self._library.inotify_add_watch(
                self._descriptor, os.fsencode(self._folder), mask
            )
        if self._watch < 0:
            self._end()
            return
        # A daemon: a program that ends does not wait for a ring.
        threading.Thread(target=self._listen, name="meter-lib doorbell", daemon=True).start()

    def is_open(self) -> bool:
        """Return whether it may ring."""
        return self._watch >= 0

    def arm(self) -> None:
        """Let it ring at the next write; what was written since it last rang counts too."""
        self._armed.set()

    def disarm(self) -> None:
        """Let it not ring."""
        self._armed.clear()

    def close(self) -> None:
        """Stop listening."""
        if self._watch >= 0:
            watch, self._watch = self._watch, -1
            # Which is told to whoever listens, and ends the thread.
            self._library.inotify_rm_watch(self._descriptor, watch)
            self._armed.set()

    def _listen(self) -> None:
        # Not armed, it does not even listen: a program that posts is not to be woken each time.
        while self._armed.wait() and (heard := self._hear()) is not None:
            if heard and self._armed.is_set():
                self._armed.clear()
                self.has_rung = True
                self._ring()
        self._watch = -1
        self._end()
        self._ring()

    def _hear(self) -> bool | None:
        """Return whether the log was written to, as soon as anything was; None: it is over."""
        told = os.read(self._descriptor, _READ_BYTES)
        place, heard = 0, False
        while place < len(told):
            _, mask, _, length = _EVENT.unpack_from(told, place)
            place += _EVENT.size + length
            if mask & (_IGNORED | _DELETED_SELF | _MOVED_SELF):
                return None
            name = told[place - length : place].rstrip(b"\0")
            heard = heard or name == self._log or bool(mask & _OVERFLOWED)
        return heard

    def _end(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
