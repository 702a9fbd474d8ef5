"""How a database gets on with callers' own transactions, in which events are posted.

They keep SQLite's lock and not ours; see `within.py`. Nobody tells us when one is over: the
caller commits or rolls back, by a connection that may empty no log. So a thread looks until it
can have SQLite's lock, and sees to the log.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import empty_log, is_busy, see_callers_out, translation
from meter_lib._sqlite.leaving_file import LeavingFile
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib._sqlite.room import pages_left
from meter_lib.errors import OutboxFull, OutboxUnavailable

if TYPE_CHECKING:
    from meter_lib._sqlite.file_lock import FairLock
    from meter_lib._sqlite.limits import Limits
    from meter_lib._sqlite.log_repair import LogTrust
    from meter_lib._sqlite.place import Place

__all__ = ["SharedFile"]

# From here on the log is emptied, if it is not more than a quarter of what it may be. Commits of
# ours usually see to that before.
_LARGE_LOG_BYTES = 2 * 1024 * 1024
# Between two tries while a caller's transaction is open.
_NAP_SECONDS = 0.001
# Between two looks whether it is over: most end soon, and the next may begin at once.
_SHORTEST_NAP_SECONDS = 0.0005
_LONGEST_NAP_SECONDS = 0.05


class SharedFile(LeavingFile):
    """The part of `Database` that is there for callers' own transactions."""

    limits: Limits
    max_log_bytes: int
    _mode: tuple[str, bool]
    _trust: LogTrust
    _place: Place | None
    _log_bytes: int
    _write_lock: FairLock | None
    # The highest seq that has been given in a transaction of a caller's own which may be open.
    _promised_seq: int | None = None
    # The process whose thread sees to it, and for how long that naps.
    _looking = 0
    _nap_seconds = _SHORTEST_NAP_SECONDS

    def _nap_or_raise(
        self, error: sqlite3.Error | OSError, give_up_at: float, patience_seconds: float
    ) -> float:
        """Let others have a turn where somebody else has SQLite's lock, else raise what it means.

        Returns until when that may go on, for the next time. A caller's own transaction may have
        SQLite's lock, and need ours before it can end: so nobody who has ours waits for SQLite's.
        """
        if not is_busy(error):
            raise translation(self.path, error) from error
        give_up_at = give_up_at or time.monotonic() + patience_seconds
        if time.monotonic() > give_up_at:
            raise OutboxUnavailable(
                f"{self.path} is locked: another connection has had a transaction open for "
                f"{patience_seconds:g} s; nothing was recorded"
            ) from error
        self._mutex.release()
        try:
            time.sleep(_NAP_SECONDS)
        finally:
            self._mutex.acquire()
        return give_up_at

    def check_room_within(
        self, theirs: sqlite3.Connection, ours: sqlite3.Connection, log_bytes: int, pages: int
    ) -> None:
        """Raise `OutboxFull` where the caller's open transaction has no room for so much more.

        To be called in `capture`, whose connection `ours` is.
        """
        left = pages_left(theirs, self.limits)
        if left < pages:
            raise OutboxFull(
                f"{self.path} is full: its limit (METER_MAX_BYTES) is reached; nothing was recorded"
            )
        # What it has taken so far goes to the log at its commit, with what that touches.
        in_hand = 2 * PAGE_BYTES * max(0, pages_left(ours, self.limits) - left)
        in_log = 0 if self._place is None else self._place.log_bytes()
        if in_log + in_hand + log_bytes > self.max_log_bytes:
            raise OutboxFull(
                f"{self.path} is full: its write-ahead log has no room for more before this"
                f" transaction ends; nothing was recorded"
            )

    def look_after(self, promised_seq: int) -> None:
        """See to the log as soon as the transaction is over in which this seq was given."""
        self._promised_seq = promised_seq
        self._nap_seconds = _SHORTEST_NAP_SECONDS
        if self._looking == os.getpid():
            return
        try:
            threading.Thread(target=self._look, name="meter-lib log", daemon=True).start()
        except RuntimeError as error:
            raise OutboxUnavailable(
                f"{self.path}: no thread can be started to look after a transaction: {error};"
                f" nothing was recorded"
            ) from error
        self._looking = os.getpid()

    def leave_transactions(self) -> None:
        """Before the file is closed: leave what is not over to whoever opens it next."""
        promised_seq, self._promised_seq = self._promised_seq, None
        if promised_seq is None or self._looking != os.getpid() or self._see_to_log(promised_seq):
            return
        if self._write_lock is not None:
            with contextlib.suppress(OSError):
                self._write_lock.mark(is_marked=True)

    def _look(self) -> None:
        is_over = False
        while not is_over:
            time.sleep(self._nap_seconds)
            self._nap_seconds = min(2 * self._nap_seconds, _LONGEST_NAP_SECONDS)
            with self._mutex:
                is_over = True
                try:
                    is_over = self._promised_seq is None or self._see_to_log(self._promised_seq)
                finally:
                    if is_over:
                        # Under the mutex: who posts next starts another thread.
                        self._promised_seq = None
                        self._looking = 0

    def _see_to_log(self, promised_seq: int) -> bool:
        """Return False where the transaction is open still, or readers are in the way."""
        try:
            connection = self._locked()
            try:
                see_callers_out(connection)
                if accepted_events(connection) < promised_seq:
                    # It was rolled back, or its sync failed: then the log may have a hole, as after
                    # a failed sync of ours, and what was refused whole. Nobody can say which.
                    self._mode = "", True
                    return self._trust.renew(connection, self._write_lock)
                if self._log_bytes > min(_LARGE_LOG_BYTES, self.max_log_bytes // 4):
                    empty_log(connection)
                return True
            finally:
                self._unlock()
        except (sqlite3.Error, OSError, OutboxUnavailable) as error:
            return not is_busy(error)
