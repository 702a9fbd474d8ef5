"""Lets the n-th operation fail, for one n after the other, in a process of its own for each.

`python failing.py HOW WHAT FOLLOWS FOLDER FIRST`: HOW is `system` (needs failing_disk.c
preloaded) or `sqlite`; WHAT one of the scenarios; FOLLOWS `once` or `for-good`. Prints a line
of JSON for each n, until one is more than there are operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

from meter_lib import MeterClient, OutboxUnavailable, Settings, post_meter_usage
from meter_lib.opening import open_outbox
from meter_lib.outbox import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES = 4 * 1024 * 1024
NOW = 2**53
# More than the log may hold before it is written to the database.
MANY = 70
# Among hundreds of operations, so many are tried.
TRIED = 45


class Disk:
    """Fails by the system calls of this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)

    def fail_from(self, nth: int, *, for_good: bool) -> None:
        """Let the n-th call from now on fail, or all from that one on."""
        error = errno.ENOSPC if nth % 3 == 0 else errno.EIO
        self._library.fail_from(ctypes.c_long(nth), error, for_good)

    def heal(self) -> bool:
        """Return whether anything has failed."""
        failed = self._library.failures_so_far() > 0
        self._library.fail_from(ctypes.c_long(-1), 0, 0)
        return failed


class Engine:
    """Fails by the statements that this process gives to SQLite."""

    def __init__(self) -> None:
        self._left = -1
        self._for_good = self._failed = False
        engine = self

        class Failing(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                # A transaction ends by ROLLBACK, even where that reports an error.
                if sql == "ROLLBACK":
                    super().execute(sql)
                    engine.count()
                    return self.cursor()
                # It sets a number in memory, and cannot fail.
                if not sql.startswith("PRAGMA busy_timeout"):
                    engine.count()
                return super().execute(sql, *parameters)

            def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
                engine.count()
                return super().executemany(sql, parameters)

        sqlite3.connect = functools.partial(sqlite3.connect, factory=Failing)

    def count(self) -> None:
        """Fail if it is time."""
        if self._left < 0:
            return
        self._left -= 1
        if self._left <= 0:
            self._failed = True
            self._left = 1 if self._for_good else -1
            raise sqlite3.OperationalError("disk I/O error")

    def fail_from(self, nth: int, *, for_good: bool) -> None:
        """Let the n-th statement from now on fail, or all from that one on."""
        self._left, self._for_good, self._failed = nth, for_good, False

    def heal(self) -> bool:
        """Return whether anything has failed."""
        self._left = -1
        return self._failed


class Poster:
    """Posts numbered events to an outbox, and keeps what it was told of each."""

    def __init__(self, path: str) -> None:
        self.settings = Settings(outbox=path, max_bytes=MAX_BYTES)
        self.client = MeterClient(settings=self.settings)
        self.next = 1
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.settled: list[int] = []
        self.errors: list[str] = []

    def post(self) -> None:
        """Post the next event."""
        self._told(1, lambda numbers: self.client.post(**_event(numbers[0])))

    def post_many(self, count: int) -> None:
        """Post the next events together."""
        self._told(count, lambda numbers: self.client.post_many(map(_event, numbers)))

    def post_by_function(self) -> None:
        """Post the next event by the function that returns None where it cannot."""

        def post(numbers: list[int]) -> None:
            if post_meter_usage(**_event(numbers[0])) is None:
                raise OutboxUnavailable("None")

        self._told(1, post)

    def settle(self) -> None:
        """Settle some events as delivered."""
        with contextlib.closing(open_outbox(self.settings)) as outbox:
            try:
                due = outbox.due(now=NOW, limit=20, max_bytes=MAX_BYTES)
                outbox.settle(Settlement(delivered=due), now=NOW)
            except OutboxUnavailable as error:
                self.errors.append(str(error))
            else:
                self.settled += [event.total_usage or 0 for event in due]

    def _told(self, count: int, post: Callable[[list[int]], object]) -> None:
        numbers = list(range(self.next, self.next + count))
        self.next += count
        try:
            post(numbers)
        except OutboxUnavailable as error:
            self.refused += numbers
            self.errors.append(str(error))
        else:
            self.acknowledged += numbers


def _event(number: int) -> dict[str, Any]:
    return {
        "tenant_id": "t",
        "device_id": f"d{number % 5}",
        "meter_id": "page.processed.basic",
        "total_usage": number,
        "metadata": {"pad": "x" * (number * 37 % 5000)},
    }


def _posts(poster: Poster) -> None:
    poster.post()
    poster.post_by_function()
    poster.post_many(3)
    poster.post()


def _settles(poster: Poster) -> None:
    poster.settle()
    poster.post()
    poster.settle()


def _closes(poster: Poster) -> None:
    poster.post()
    poster.client.close()
    poster.post()


def _fills_the_log(poster: Poster) -> None:
    for _ in range(5):
        poster.post()
    poster.post_many(4)


# What is done before operations fail, and what while they do.
SCENARIOS: dict[str, tuple[Callable[[Poster], None], Callable[[Poster], None]]] = {
    "a new file": (lambda _: None, _posts),
    "an open file": (_posts, _posts),
    "a full log": (lambda poster: poster.post_many(MANY), _fills_the_log),
    "settling": (lambda poster: poster.post_many(30), _settles),
    "closing": (lambda poster: poster.post_many(9), _closes),
}


def _attempt(disk: Disk | Engine, what: str, nth: int, *, for_good: bool, folder: str) -> bool:
    """Do it once, in this process; return whether the n-th operation was reached."""
    path = os.path.join(folder, str(nth), "outbox.db")
    os.environ["METER_OUTBOX"] = path
    os.environ["METER_MAX_BYTES"] = str(MAX_BYTES)
    poster = Poster(path)
    before, meanwhile = SCENARIOS[what]
    before(poster)
    assert poster.errors == []
    disk.fail_from(nth, for_good=for_good)
    meanwhile(poster)
    failed = disk.heal()
    errors, poster.errors = poster.errors, []
    poster.post()
    poster.settle() if what == "settling" else poster.post_many(2)
    said = {
        "path": path,
        "failed": failed,
        "acknowledged": poster.acknowledged,
        "refused": poster.refused,
        "settled": poster.settled,
        "errors": errors,
        "errors_when_healed": poster.errors,
    }
    sys.stdout.write(f"{json.dumps(said)}\n")
    sys.stdout.flush()
    if nth % 2 == 0:
        poster.client.close()
    return failed


def _numbers(first: int) -> Iterator[int]:
    """Yield every n at first, then ever fewer."""
    number = first
    while True:
        yield number
        number += 1 + number // TRIED


def _main(how: str, what: str, follows: str, folder: str, first: str) -> None:
    disk = Disk() if how == "system" else Engine()
    for nth in _numbers(int(first)):
        child = os.fork()
        if child == 0:
            # Half of them end without closing, as if killed.
            failed = _attempt(disk, what, nth, for_good=follows == "for-good", folder=folder)
            os._exit(0 if failed else 3)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _main(*sys.argv[1:])
