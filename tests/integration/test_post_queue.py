"""Threads that post at the same time: they share commits, and nothing else."""

from __future__ import annotations

import ctypes
import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib._sqlite import SqliteOutbox, database, file_lock, recorder
from meter_lib._sqlite.file_lock import FairLock
from meter_lib.errors import KeyConflict, MeterError, OutboxFull, OutboxUnavailable
from meter_lib.usage import usage_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meter_lib.usage import UsageEvent

NOON = 1_760_000_000_000


def use(units: int = 1, **said: Any) -> UsageEvent:
    """An event, with what differs."""
    return usage_event("t", "d", "m", units, **said)


def until(condition: Callable[[], bool]) -> None:
    """Return once it holds, or fail the test."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def outbox(outbox_path: str) -> Iterator[SqliteOutbox]:
    """An open outbox with one event, so that a lone post is one statement."""
    made = SqliteOutbox(outbox_path, max_bytes=4 << 20)
    made.append([use(0)], now=NOON)
    yield made
    made.close()


class Poster(threading.Thread):
    """A thread that posts once."""

    def __init__(self, outbox: SqliteOutbox, events: Sequence[UsageEvent]) -> None:
        super().__init__()
        self._outbox = outbox
        self._events = events
        self.answer: list[str] | MeterError | None = None

    def run(self) -> None:
        """Post, and keep what comes of it."""
        try:
            receipts = self._outbox.append(self._events, now=NOON)
            self.answer = [receipt["status"] for receipt in receipts]
        except MeterError as error:
            self.answer = error


@contextmanager
def all_waiting(
    outbox: SqliteOutbox, posters: Sequence[Poster], *, at_most_seconds: float | None = None
) -> Iterator[None]:
    """Let them wait behind the first, who waits for another process, and then go on together."""
    with open(f"{outbox.location}.lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for number, poster in enumerate(posters):
            poster.start()
            until(lambda number=number: waiting(outbox) == number)
        yield
    for poster in posters:
        poster.join(at_most_seconds)


def waiting(outbox: SqliteOutbox) -> int:
    """How many posts wait behind the one that is being recorded; -1 where none is."""
    queue = outbox._queue
    return len(queue._waiting) if queue._leader else -1


def stored(outbox: SqliteOutbox) -> list[int]:
    """The units of the events in the file, in their order."""
    return [units for units, _ in rows_of(outbox.location)]


def rows_of(path: str) -> list[tuple[int, str]]:
    """Units and key of each event in a file, in their order."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT total_usage, idempotency_key FROM events ORDER BY seq"
    ).fetchall()
    connection.close()
    return rows


def test_threads_that_wait_share_one_commit(outbox: SqliteOutbox) -> None:
    """Seven threads that wait for an eighth are recorded in one transaction, in their order."""
    connection = outbox._database._connection
    assert connection is not None
    statements: list[str] = []
    posters = [Poster(outbox, [use(number)]) for number in range(1, 9)]
    with all_waiting(outbox, posters):
        connection.set_trace_callback(statements.append)
    connection.set_trace_callback(None)
    assert [poster.answer for poster in posters] == [["queued"]] * 8
    assert [statement for statement in statements if statement == "COMMIT"] == ["COMMIT"]
    assert stored(outbox) == list(range(9))


def test_a_refused_event_hurts_nobody_who_shares_its_commit(outbox: SqliteOutbox) -> None:
    """A conflicting key is the error of its own post alone; a list stays all or nothing."""
    outbox.append([use(10, idempotency_key="k")], now=NOON)
    posters = [
        Poster(outbox, [use(1)]),
        Poster(outbox, [use(2)]),
        Poster(outbox, [use(3), use(4, idempotency_key="k"), use(5)]),
        Poster(outbox, [use(10, idempotency_key="k")]),
        Poster(outbox, [use(6)]),
    ]
    with all_waiting(outbox, posters):
        pass
    answers = [poster.answer for poster in posters]
    assert isinstance(answers[2], KeyConflict)
    assert answers[2].index == 1
    assert answers[:2] + answers[3:] == [["queued"], ["queued"], ["duplicate"], ["queued"]]
    assert stored(outbox) == [0, 10, 1, 2, 6]


def test_a_list_that_has_no_room_hurts_nobody_who_shares_its_commit(outbox: SqliteOutbox) -> None:
    """Where one post is too large for the outbox, the others that waited with it are recorded."""
    posters = [
        Poster(outbox, [use(1)]),
        Poster(outbox, [use(2)]),
        Poster(outbox, [use(3, metadata={"x": "y" * 8_000})] * 500),
        Poster(outbox, [use(4)]),
    ]
    with all_waiting(outbox, posters):
        pass
    answers = [poster.answer for poster in posters]
    assert isinstance(answers[2], OutboxFull)
    assert (answers[:2] + answers[3:], stored(outbox)) == ([["queued"]] * 3, [0, 1, 2, 4])


def test_all_who_share_a_commit_that_fails_are_told(
    outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the lock is never given back, each of those who wait is refused, none is recorded."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.5)
    posters = [Poster(outbox, [use(number)]) for number in range(1, 5)]
    with all_waiting(outbox, posters):
        for poster in posters:
            poster.join()
    assert {type(poster.answer) for poster in posters} == {OutboxUnavailable}
    assert stored(outbox) == [0]
    outbox.append([use(9)], now=NOON)
    assert stored(outbox) == [0, 9]


def test_the_main_thread_posts_beside_the_others(outbox: SqliteOutbox) -> None:
    """Each event of four threads and of the main one is recorded once, in each one's order."""
    posted = 200

    def post(first: int) -> None:
        for number in range(first, first + posted):
            outbox.append([use(number)], now=NOON)

    threads = [threading.Thread(target=post, args=(1000 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    post(5000)
    for thread in threads:
        thread.join()
    units = stored(outbox)
    assert len(units) == 1 + 5 * posted
    for first in range(1000, 6000, 1000):
        its_own = [number for number in units if first <= number < first + 1000]
        assert its_own == list(range(first, first + posted))


def test_a_post_out_of_a_post_is_refused(
    outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a finalizer posts while its thread is recording, it does not wait for itself."""
    nested = Poster(outbox, [use(2)])

    def finalizer_runs(size: int) -> bytes:
        nested.run()
        return bytes(size)

    monkeypatch.setattr(recorder.os, "urandom", finalizer_runs)
    poster = Poster(outbox, [use(1)])
    poster.start()
    poster.join()
    assert (poster.answer, type(nested.answer)) == (["queued"], OutboxUnavailable)
    assert stored(outbox) == [0, 1]


class Interrupted(Exception):
    """What one thread throws into another."""


class InterruptedPoster(Poster):
    """A thread that does not return from its post."""

    def run(self) -> None:
        """Post, and end as if nothing had happened."""
        with suppress(Interrupted):
            super().run()

    def interrupt(self) -> None:
        """Let it raise as soon as it has been woken."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self.ident or 0), ctypes.py_object(Interrupted)
        )


def test_a_thread_that_is_interrupted_keeps_nobody_waiting(outbox: SqliteOutbox) -> None:
    """Of those that are recorded together each wakes the next, whatever becomes of it."""
    interrupted = InterruptedPoster(outbox, [use(3)])
    posters = [Poster(outbox, [use(number)]) for number in (1, 2, 4, 5)]
    posters.insert(2, interrupted)
    for poster in posters:
        poster.daemon = True
    with all_waiting(outbox, posters, at_most_seconds=20):
        # The second leads for the third and those behind it.
        interrupted.interrupt()
    assert [poster.answer for poster in posters] == [["queued"]] * 2 + [None] + [["queued"]] * 2
    assert stored(outbox) == [0, 1, 2, 3, 4, 5]


# Threads print the key of each event they have a receipt for; the program ends in their midst.
ENDING = """
import os, sys, threading
from meter_lib import MeterClient

client = MeterClient(sys.argv[1])
several = threading.Semaphore(0)

def post():
    while True:
        key = client.post("t", "d", "page.processed.basic", 1)["idempotency_key"]
        os.write(1, f"{key}\\n".encode())
        several.release()

for _ in range(4):
    threading.Thread(target=post, daemon=True).start()
for _ in range(int(sys.argv[2])):
    several.acquire()
"""


@pytest.mark.parametrize("posts", [1, 40, 200])
def test_the_program_may_end_while_threads_post(outbox_path: str, posts: int) -> None:
    """Daemon threads that post to the very end neither hang nor crash it, and lose nothing."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, outbox_path, str(posts)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    keys = {key for _, key in rows_of(outbox_path)}
    assert len(ended.stdout.split()) >= posts
    assert set(ended.stdout.split()) <= keys


WAITER = """
import sys
from meter_lib._sqlite.file_lock import FairLock

lock = FairLock(sys.argv[1], sys.argv[2])
print("waiting", flush=True)
print(lock.acquire(30), flush=True)
sys.stdin.readline()
"""


def test_whoever_waits_for_the_lock_is_next(outbox_path: str) -> None:
    """A process that lets go of the lock cannot take it again before the one that waits for it."""
    paths = f"{outbox_path}.lock", f"{outbox_path}.turn"
    lock = FairLock(*paths)
    assert lock.acquire(0)
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as waiter:
        assert waiter.stdin is not None
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waiting\n"
        until(lambda: _is_taken(paths[1]))
        for _ in range(3):
            # However often it asks: the turn is the other's.
            lock.release()
            assert not lock.acquire(0.02)
        assert waiter.stdout.readline() == "True\n"
        waiter.stdin.write("\n")
        waiter.stdin.flush()
        assert waiter.wait(20) == 0
        assert lock.acquire(20)
    lock.close()


@pytest.mark.parametrize("ending", [".lock", ".turn"])
def test_whoever_gives_up_waiting_keeps_nobody_waiting(
    outbox: SqliteOutbox, outbox_path: str, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Ctrl-C while a post waits for the lock leaves neither the lock nor the turn taken."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for nap in ("sched_yield", "sleep"):
        monkeypatch.setattr(
            file_lock.os if nap == "sched_yield" else file_lock.time, nap, interrupted
        )
    with open(f"{outbox_path}{ending}", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(KeyboardInterrupt):
            outbox.append([use(1)], now=NOON)
    assert not _is_taken(f"{outbox_path}.turn")
    assert not _is_taken(f"{outbox_path}.lock")
    monkeypatch.undo()
    outbox.append([use(2)], now=NOON)
    assert stored(outbox) == [0, 2]


def _is_taken(path: str) -> bool:
    if not os.path.exists(path):
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
