"""What a program that records usage relies on: `MeterClient` and the two functions."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import meter_lib
from meter_lib import (
    InvalidSetting,
    InvalidUsage,
    InvalidUsageType,
    KeyConflict,
    MeterClient,
    MeterError,
    OutboxUnavailable,
    Settings,
    post_ai_meter_usage,
    post_meter_usage,
)
from meter_lib._sqlite import SqliteOutbox
from meter_lib.outbox import Settlement
from tests.fakes import ManualClock
from tests.small_disks import done, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

NOON = 1_759_791_552_000
WHO = {"tenant_id": "tenant-1", "device_id": "device-1", "meter_id": "page.processed.basic"}


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still at noon."""
    return ManualClock(NOON)


@pytest.fixture
def client(outbox_path: str, clock: ManualClock) -> Generator[MeterClient, None, None]:
    """A client with an outbox of its own, which is not there yet."""
    with MeterClient(outbox_path, clock=clock) as client:
        yield client


def stored(path: str) -> list[tuple[int, str, int, dict[str, Any]]]:
    """What is in the file: number, key, event time and what was said, read without this library."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT seq, idempotency_key, event_time, payload FROM events ORDER BY seq"
    ).fetchall()
    connection.close()
    return [(seq, key, event_time, json.loads(payload)) for seq, key, event_time, payload in rows]


def said(path: str, *names: str) -> list[tuple[Any, ...]]:
    """Of each stored event, these things that the caller said."""
    return [tuple(payload.get(name) for name in names) for *_, payload in stored(path)]


def deliver_everything(path: str) -> None:
    """Let the backend have it all."""
    outbox = SqliteOutbox(path, max_bytes=2**30)
    outbox.settle(Settlement(delivered=outbox.due(now=NOON, limit=99, max_bytes=2**20)), now=NOON)
    outbox.close()


def assert_sound(path: str) -> None:
    """The file is whole, and its numbers have no gap."""
    connection = sqlite3.connect(path)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    first, last, count = connection.execute(
        "SELECT min(seq), max(seq), count(*) FROM events"
    ).fetchone()
    connection.close()
    assert (verdict, first, last) == ("ok", 1, count)


# -- post -----------------------------------------------------------------------------


def test_a_post_is_in_the_file_when_it_returns(client: MeterClient, outbox_path: str) -> None:
    """The receipt stands for a row that any program can read, with all that was said."""
    receipt = client.post(
        "tenant-1", "device-1", "page.processed.basic", 24, metadata={"rule": "r", "n": 1}
    )
    key = receipt["idempotency_key"]
    assert receipt == {"status": "queued", "idempotency_key": key, "event_time": NOON}
    assert stored(outbox_path) == [
        (
            1,
            key,
            NOON,
            {
                "tenant_id": "tenant-1",
                "device_id": "device-1",
                "meter_id": "page.processed.basic",
                "total_usage": 24,
                "metadata": {"rule": "r", "n": "1"},
            },
        )
    ]


@pytest.mark.parametrize(
    ("times", "event_time"),
    [
        ({}, NOON),
        ({"timestamp": NOON - 5, "start_time": NOON - 9, "end_time": NOON - 8}, NOON - 5),
        ({"start_time": NOON - 9, "end_time": NOON - 8}, NOON - 8),
        ({"start_time": NOON - 9}, NOON - 9),
        ({"end_time": NOON - 8}, NOON - 8),
    ],
)
def test_the_event_time_is_when_it_happened(
    client: MeterClient, times: dict[str, int], event_time: int
) -> None:
    """`timestamp` if given, else `end_time`, else `start_time`, else now."""
    assert client.post(**WHO, total_usage=1, **times)["event_time"] == event_time


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"tenant_id": ""}, InvalidUsage),
        ({"tenant_id": "a\nb"}, InvalidUsage),
        ({"device_id": 5}, InvalidUsageType),
        ({"total_usage": -1}, InvalidUsage),
        ({"total_usage": 1.5}, InvalidUsageType),
        ({"total_usage": True}, InvalidUsageType),
        ({"total_usage": None}, InvalidUsage),
        ({"start_time": 1_759_791_552}, InvalidUsage),
        ({"start_time": NOON, "end_time": NOON - 1}, InvalidUsage),
        ({"timestamp": "now"}, InvalidUsageType),
        ({"metadata": {"x": None}}, InvalidUsageType),
        ({"idempotency_key": "a b"}, InvalidUsage),
    ],
)
def test_a_wrong_argument_records_nothing(
    client: MeterClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, Any],
    error: type[MeterError],
) -> None:
    """A wrong argument raises, in all three ways to post, and does not even make a file."""
    arguments = {**WHO, "total_usage": 1, **wrong}
    monkeypatch.setenv("METER_OUTBOX", str(tmp_path / "default.db"))
    for post in (client.post, post_meter_usage):
        with pytest.raises(error):
            post(**arguments)
    with pytest.raises(error, match=r"^event 0: "):
        client.post_many([arguments])
    assert issubclass(error, MeterError)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_argument_is_an_error(client: MeterClient) -> None:
    """A slip in an argument's name is told, as Python does, and not swallowed."""
    with pytest.raises(TypeError, match="total_usages"):
        client.post(**WHO, total_usages=1)  # type: ignore[call-arg]  # the slip


def test_the_same_key_again_is_a_duplicate(client: MeterClient, outbox_path: str) -> None:
    """A post that is repeated with its key adds nothing, before its delivery and after it."""
    first = client.post(**WHO, total_usage=1, idempotency_key="k")
    duplicate = {"status": "duplicate", "idempotency_key": "k", "event_time": NOON}
    assert first == {**duplicate, "status": "queued"}
    assert client.post(**WHO, total_usage=1, idempotency_key="k") == duplicate
    assert said(outbox_path, "total_usage") == [(1,)]
    deliver_everything(outbox_path)
    assert client.post(**WHO, total_usage=1, idempotency_key="k") == duplicate
    assert stored(outbox_path) == []


def test_a_duplicate_is_known_whenever_it_comes(client: MeterClient, clock: ManualClock) -> None:
    """A time that was left to us is no content: a retry seconds later is the same event."""
    client.post(**WHO, total_usage=1, idempotency_key="k")
    clock.advance(3_600)
    for timestamp in (None, NOON, NOON + 5):
        again = client.post(**WHO, total_usage=1, idempotency_key="k", timestamp=timestamp)
        assert again == {"status": "duplicate", "idempotency_key": "k", "event_time": NOON}


def test_a_key_with_other_content_is_an_error(client: MeterClient, outbox_path: str) -> None:
    """One key never stands for two events, before the first one's delivery and after it."""
    client.post(**WHO, total_usage=1, idempotency_key="k")
    with pytest.raises(KeyConflict, match="'k'"):
        client.post(**WHO, total_usage=2, idempotency_key="k")
    assert said(outbox_path, "total_usage") == [(1,)]
    deliver_everything(outbox_path)
    with pytest.raises(KeyConflict, match="'k'"):
        client.post(**WHO, total_usage=2, idempotency_key="k")
    assert stored(outbox_path) == []


# -- post_many ------------------------------------------------------------------------


def test_many_are_recorded_in_order(client: MeterClient, outbox_path: str) -> None:
    """Any iterable of mappings is recorded whole, with a receipt for each in its order."""
    receipts = client.post_many({**WHO, "total_usage": units} for units in range(250))
    assert [receipt["status"] for receipt in receipts] == ["queued"] * 250
    assert [(key, payload["total_usage"]) for _, key, _, payload in stored(outbox_path)] == [
        (receipt["idempotency_key"], units) for units, receipt in enumerate(receipts)
    ]


def test_many_are_one_commit(client: MeterClient, outbox_path: str) -> None:
    """A list costs one sync, not one for each event."""
    client.post_many([{**WHO, "total_usage": 1}])
    connection = sqlite3.connect(outbox_path)
    (before,) = connection.execute("PRAGMA data_version").fetchone()
    client.post_many([{**WHO, "total_usage": units} for units in range(100)])
    (after,) = connection.execute("PRAGMA data_version").fetchone()
    connection.close()
    assert after - before == 1


def test_none_of_many_is_nothing(client: MeterClient, tmp_path: Path) -> None:
    """An empty list has no receipts, and needs no file."""
    assert client.post_many([]) == []
    assert list(tmp_path.iterdir()) == []


GOOD = {**WHO, "total_usage": 1}


def _interrupted() -> Iterator[dict[str, Any]]:
    yield GOOD
    raise RuntimeError("the source is broken")


@pytest.mark.parametrize(
    ("events", "error", "says"),
    [
        ([GOOD, GOOD, {**WHO}], InvalidUsage, r"^event 2: nothing was used"),
        ([GOOD, {**GOOD, "total_usage": 1.5}, GOOD], InvalidUsageType, r"^event 1: total_usage"),
        ([GOOD, {**GOOD, "usage": 1}], InvalidUsage, r"^event 1: there is no argument 'usage'"),
        ([GOOD, "text"], InvalidUsageType, r"^event 1: the event is 'text'"),
        (
            [GOOD, {**GOOD, "idempotency_key": "k"}, {**GOOD, "idempotency_key": "taken"}],
            KeyConflict,
            r"^event 2: idempotency_key 'taken'",
        ),
        (_interrupted(), RuntimeError, "the source is broken"),
        (7, InvalidUsageType, r"^events is 7: it must be an iterable"),
        (None, InvalidUsageType, r"^events is None: it must be an iterable"),
    ],
)
def test_many_are_recorded_all_or_none(
    client: MeterClient, outbox_path: str, events: Any, error: type[Exception], says: str
) -> None:
    """One bad event keeps out all, and is named by its index."""
    client.post(**WHO, total_usage=9, idempotency_key="taken")
    with pytest.raises(error, match=says):
        client.post_many(events)
    assert said(outbox_path, "total_usage") == [(9,)]
    assert client.post(**GOOD, idempotency_key="k")["status"] == "queued"


def test_a_conflict_in_many_tells_its_index(client: MeterClient) -> None:
    """A program can find the event that conflicts without reading the message."""
    client.post(**GOOD, idempotency_key="taken")
    with pytest.raises(KeyConflict) as conflict:
        client.post_many([GOOD, {**GOOD, "total_usage": 2, "idempotency_key": "taken"}])
    assert conflict.value.index == 1


# -- session --------------------------------------------------------------------------


def test_a_session_is_two_events(client: MeterClient, clock: ManualClock, outbox_path: str) -> None:
    """Use begins on entry and ends on exit; the start is on the disk before the block runs."""
    with client.session("t", "d", "chat.on.time_hours") as receipt:
        assert said(outbox_path, "start_time", "end_time") == [(NOON, None)]
        clock.advance(90)
    assert receipt == {
        "status": "queued",
        "idempotency_key": stored(outbox_path)[0][1],
        "event_time": NOON,
    }
    assert said(outbox_path, "ai_event", "start_time", "end_time") == [
        (True, NOON, None),
        (True, None, NOON + 90_000),
    ]


@pytest.mark.parametrize("way_out", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_session_ends_however_the_block_does(
    client: MeterClient, clock: ManualClock, outbox_path: str, way_out: type[BaseException]
) -> None:
    """An exception ends the use as well, and goes on to the caller."""
    with pytest.raises(way_out), client.session("t", "d", "m"):  # noqa: PT012  # the block is meant
        clock.advance(1)
        raise way_out
    assert said(outbox_path, "start_time", "end_time") == [(NOON, None), (None, NOON + 1_000)]


@pytest.mark.parametrize("boot", [0, 17, 946_684_800_000], ids=["1970", "just after", "2000"])
def test_a_session_works_on_a_device_without_a_clock(outbox_path: str, boot: int) -> None:
    """A clock that was never set is believed: the library's own time is always recorded."""
    clock = ManualClock(boot)
    with MeterClient(outbox_path, clock=clock) as client:
        with client.session("t", "d", "m"):
            clock.advance(1)
        client.post(**WHO, total_usage=1)
    assert [
        (event_time, payload.get("start_time"), payload.get("end_time"))
        for _, _, event_time, payload in stored(outbox_path)
    ] == [(boot, boot, None), (boot + 1_000, None, boot + 1_000), (boot + 1_000, None, None)]


def test_a_session_outlives_a_clock_that_is_set_back(
    client: MeterClient, clock: ManualClock, outbox_path: str
) -> None:
    """What is billed is the time that has passed: a clock that jumps back changes none of it."""
    with client.session("t", "d", "m"):
        clock.advance(2)
        clock.jump(-3_600)
    assert said(outbox_path, "start_time", "end_time") == [(NOON, None), (None, NOON + 2_000)]


@pytest.mark.parametrize(
    ("ids", "error"), [(("", "d", "m"), InvalidUsage), (("t", 5, "m"), InvalidUsageType)]
)
def test_a_session_that_cannot_begin_does_not_run(
    client: MeterClient, tmp_path: Path, ids: tuple[Any, Any, Any], error: type[Exception]
) -> None:
    """Where the start cannot be recorded the block is not entered."""
    entered = False
    with pytest.raises(error), client.session(*ids):
        entered = True
    assert (entered, list(tmp_path.iterdir())) == (False, [])


# -- the client itself ----------------------------------------------------------------


def test_nothing_is_made_before_the_first_post(tmp_path: Path) -> None:
    """A program may make a client it never uses: the disk is left alone."""
    with MeterClient(tmp_path / "folder" / "outbox.db") as client:
        assert repr(client) == f"MeterClient(outbox={str(tmp_path / 'folder' / 'outbox.db')!r})"
    assert list(tmp_path.iterdir()) == []


def test_a_client_may_be_closed_again_and_used_again(client: MeterClient, outbox_path: str) -> None:
    """`close` lets go of the file and loses nothing; the next post opens it anew."""
    client.close()
    client.post(**WHO, total_usage=1)
    client.close()
    client.close()
    client.post(**WHO, total_usage=2)
    assert said(outbox_path, "total_usage") == [(1,), (2,)]


def test_a_closed_client_leaves_one_file_to_move(client: MeterClient, tmp_path: Path) -> None:
    """After `close` all events are in the one file, which can be copied or moved as it is."""
    client.post(**WHO, total_usage=1)
    client.close()
    moved = tmp_path / "elsewhere.db"
    (tmp_path / "outbox.db").rename(moved)
    assert said(str(moved), "total_usage") == [(1,)]


def test_the_outbox_named_in_the_call_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument over settings over environment."""
    for name in ("environment", "settings", "argument"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("METER_OUTBOX", str(tmp_path / "environment" / "o.db"))
    settings = Settings(outbox=str(tmp_path / "settings" / "o.db"))
    for client in (
        MeterClient(),
        MeterClient(settings=settings),
        MeterClient(tmp_path / "argument" / "o.db", settings=settings),
    ):
        with client:
            client.post(**WHO, total_usage=1)
    for name in ("environment", "settings", "argument"):
        assert said(str(tmp_path / name / "o.db"), "total_usage") == [(1,)]


def test_a_wrong_outbox_is_refused_at_once(tmp_path: Path) -> None:
    """A path that cannot be meant is named when the client is made, not at the first post."""
    with pytest.raises(InvalidSetting, match="METER_OUTBOX"):
        MeterClient(tmp_path)


def test_an_outbox_that_fails_says_so(tmp_path: Path) -> None:
    """The client raises one kind of error for whatever keeps the outbox from taking the event."""
    (tmp_path / "file").write_text("in the way")
    with MeterClient(tmp_path / "file" / "outbox.db") as client:
        for post in (
            lambda: client.post(**WHO, total_usage=1),
            lambda: client.post_many([GOOD]),
            lambda: client.session("t", "d", "m").__enter__(),
        ):
            with pytest.raises(OutboxUnavailable, match=r"outbox\.db cannot be used: "):
                post()


# -- many at once ---------------------------------------------------------------------


def test_threads_share_a_client(client: MeterClient, outbox_path: str) -> None:
    """Every post of every thread is there once, in the thread's order, under gap-free numbers."""
    receipts: dict[int, list[str]] = {}

    def post(thread: int) -> None:
        receipts[thread] = [
            client.post("t", f"thread-{thread}", "m", units)["idempotency_key"]
            for units in range(200)
        ]

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[int, list[str]] = {thread: [] for thread in range(8)}
    for _, key, _, payload in stored(outbox_path):
        found[int(payload["device_id"].removeprefix("thread-"))].append(key)
    assert found == receipts
    assert_sound(outbox_path)


POSTER = """
import sys
from meter_lib import MeterClient
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with MeterClient(path) as client:
    for units in range(count):
        print(client.post("t", name, "page.processed.basic", units)["idempotency_key"])
"""


def test_processes_share_an_outbox(outbox_path: str) -> None:
    """Processes that start together on a file that is not there yet lose none of their posts."""
    posters = [
        subprocess.Popen(
            [sys.executable, "-c", POSTER, outbox_path, str(number), "50"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for poster in posters:
        assert poster.stdout is not None
        assert poster.stdout.readline() == "ready\n"
    for poster in posters:
        assert poster.stdin is not None
        poster.stdin.write("go\n")
        poster.stdin.flush()
    answers = [poster.communicate() for poster in posters]
    assert {errors for _, errors in answers} == {""}
    found: list[list[str]] = [[] for _ in posters]
    for _, key, _, payload in stored(outbox_path):
        found[int(payload["device_id"])].append(key)
    assert found == [keys.split() for keys, _ in answers]
    assert_sound(outbox_path)


FORKER = """
import os, sys, threading
from meter_lib import MeterClient

path, way_out, forking_threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
meter = "page.processed.basic"
client = MeterClient(path)
client.post("t", "parent", meter, 0)
posted, statuses = [1], []
done = threading.Event()

def post():
    count = 0
    while not done.is_set():
        client.post("t", "parent", meter, 1)
        count += 1
    posted.append(count)

def fork():
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            client.post("t", "child", meter, 1)
            client.post("t", "child", meter, 2)
            if way_out == "os._exit":
                os._exit(0)
            sys.exit(0)
        statuses.append(os.waitpid(pid, 0)[1])

posters = [threading.Thread(target=post) for _ in range(3)]
forkers = [threading.Thread(target=fork) for _ in range(forking_threads)]
for thread in posters + forkers:
    thread.start()
if not forkers:
    fork()
for thread in forkers:
    thread.join()
done.set()
for thread in posters:
    thread.join()
print(sum(posted), *statuses)
"""


@pytest.mark.parametrize(
    ("way_out", "forking_threads"),
    [("os._exit", 0), ("sys.exit", 0), ("os._exit", 3)],
    ids=["os._exit", "sys.exit", "from several threads"],
)
def test_forks_may_happen_while_others_post(
    outbox_path: str, way_out: str, forking_threads: int
) -> None:
    """Parent and child both post after a fork; however the child ends, no event is lost."""
    forked = subprocess.run(
        # Python 3.12 warns about forks in programs with threads: that is the point here.
        [sys.executable, "-W", "ignore", "-c", FORKER, outbox_path, way_out, str(forking_threads)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert forked.stderr == ""
    by_parent, *statuses = map(int, forked.stdout.split())
    children = 5 * max(1, forking_threads)
    assert statuses == [0] * children
    devices = [device for (device,) in said(outbox_path, "device_id")]
    assert (devices.count("parent"), devices.count("child")) == (by_parent, 2 * children)
    assert_sound(outbox_path)


# -- the two functions ----------------------------------------------------------------


@pytest.fixture
def default_outbox(outbox_path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The outbox that the environment names."""
    monkeypatch.setenv("METER_OUTBOX", outbox_path)
    return outbox_path


def test_usage_is_posted_with_a_receipt(default_outbox: str) -> None:
    """The function of the original library records durably and returns a receipt."""
    receipt = post_meter_usage("t", "d", "m", 24, timestamp=NOON, idempotency_key="k")
    assert receipt == {"status": "queued", "idempotency_key": "k", "event_time": NOON}
    assert said(default_outbox, "total_usage", "metadata") == [(24, {})]


def test_session_boundaries_are_posted_with_a_receipt(default_outbox: str) -> None:
    """Start and end of a session are events without units, at the time they name."""
    start = post_ai_meter_usage("t", "d", "m", NOON, idempotency_key="s")
    end = post_ai_meter_usage("t", "d", "m", end_time=NOON + 1, metadata={"session_id": "1"})
    assert start == {"status": "queued", "idempotency_key": "s", "event_time": NOON}
    assert end is not None
    assert end["event_time"] == NOON + 1
    assert said(default_outbox, "ai_event", "start_time", "end_time", "metadata") == [
        (True, NOON, None, {}),
        (True, None, NOON + 1, {"session_id": "1"}),
    ]


def test_a_session_boundary_names_a_time() -> None:
    """A session event without start and end says nothing and is refused."""
    with pytest.raises(InvalidUsage, match="start_time or end_time"):
        post_ai_meter_usage("t", "d", "m")


def test_posting_needs_no_network(default_outbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket is ever made to record usage."""

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", no_network)
    assert post_meter_usage("t", "d", "m", 1) is not None
    assert post_ai_meter_usage("t", "d", "m", NOON) is not None
    assert len(stored(default_outbox)) == 2


@pytest.mark.usefixtures("default_outbox")
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the host program: success, refusal and error leave it alone."""
    post_meter_usage("t", "d", "an.unknown.meter", 1)
    with pytest.raises(InvalidUsage):
        post_meter_usage("t", "d\n", "m", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METER_OUTBOX", "/dev/null/outbox.db")
        assert post_meter_usage("t", "d", "m", 1) is None
    assert capfd.readouterr().out == ""


def test_the_default_outbox_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program, or its tests, may point METER_OUTBOX elsewhere and back at any time."""
    for units, name in enumerate(["a", "b", "a"]):
        monkeypatch.setenv("METER_OUTBOX", str(tmp_path / f"{name}.db"))
        post_meter_usage("t", "d", "m", units)
    assert said(str(tmp_path / "a.db"), "total_usage") == [(0,), (2,)]
    assert said(str(tmp_path / "b.db"), "total_usage") == [(1,)]


# -- what keeps the outbox from taking an event ---------------------------------------


@pytest.fixture
def nobody() -> Generator[None, None, None]:
    """Be a user without rights for a while."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(was)


def _folder_without_rights(tmp_path: Path) -> str:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    return str(folder / "outbox.db")


def _folder_at_the_path(tmp_path: Path) -> str:
    return str(tmp_path)


def _file_in_the_way(tmp_path: Path) -> str:
    (tmp_path / "file").touch()
    return str(tmp_path / "file" / "outbox.db")


def _a_newer_outbox(tmp_path: Path) -> str:
    path = str(tmp_path / "outbox.db")
    MeterClient(path).post("t", "d", "m", 1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_folder_without_rights, "Permission denied"),
        (_folder_at_the_path, "the path of a file, not of a folder"),
        (_file_in_the_way, "Not a directory"),
        (_a_newer_outbox, "newer version"),
    ],
)
def test_an_event_that_cannot_be_taken_is_none_and_an_error_in_the_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
    make: Callable[[Path], str],
    says: str,
) -> None:
    """Callers of the original library test for None; whoever reads the log learns why."""
    monkeypatch.setenv("METER_OUTBOX", make(tmp_path))
    if make is _folder_without_rights:
        request.getfixturevalue("nobody")
    assert post_meter_usage("t", "d", "m", 1) is None
    assert post_ai_meter_usage("t", "d", "m", NOON) is None
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("meter_lib", logging.ERROR)
    ] * 2
    for record in caplog.records:
        assert "usage was not recorded" in record.message
        assert says in record.message


def test_a_wrong_setting_is_none_and_an_error_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A slip in the environment does not break the host program: it is named in its log."""
    monkeypatch.setenv("METER_OUTBOX", str(tmp_path / "outbox.db"))
    monkeypatch.setenv("METER_MAX_BYTES", "plenty")
    assert post_meter_usage("t", "d", "m", 1) is None
    assert [(record.levelno, "METER_MAX_BYTES" in record.message) for record in caplog.records] == [
        (logging.ERROR, True)
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Generator[Path, None, None]:
    """A file system of 3 MiB."""
    with small_disk("tmpfs", tmp_path, mib=3) as disk:
        yield disk


def test_a_full_disk_is_none_and_an_error_in_the_log(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has a receipt is in the file, what has none is not, now and after the disk has room."""
    path = str(tiny_disk / "outbox.db")
    monkeypatch.setenv("METER_OUTBOX", path)
    accepted: list[str] = []
    refused = 0
    while refused < 3:
        receipt = post_meter_usage("t", "d", "m", 1, metadata={"x": "y" * 8_000})
        if receipt is None:
            refused += 1
        else:
            accepted.append(receipt["idempotency_key"])
    assert accepted
    assert [record.levelno for record in caplog.records if " full" in record.message] == [
        logging.ERROR
    ] * 3
    assert done("mount", "-o", "remount,size=16m", str(tiny_disk))
    receipt = post_meter_usage("t", "d", "m", 2)
    assert receipt is not None
    meter_lib._api._clients[path].close()
    assert [key for _, key, _, _ in stored(path)] == [*accepted, receipt["idempotency_key"]]
    assert_sound(path)


# -- calls written for the original library -------------------------------------------


@pytest.fixture
def original(default_outbox: str) -> Generator[str, None, None]:
    """After the test: each call was recorded."""
    yield default_outbox
    assert len(stored(default_outbox)) == 1


@pytest.mark.usefixtures("original")
class TestTheOriginalExamples:
    """The examples of the original library's documentation, as they were written."""

    tenant_id = "tenant_123"
    device_id = "us-east-ing1"
    # The commas are the original's: these two are tuples.
    kafka_url = ("https://stream.app.domain.com",)
    portal_url = ("https://portal.app.domain.com",)
    api_key = "sk-lw-40ea6ac9ee3xxxx_305e790xxxx"

    def test_the_quickstart_runs(self, original: str) -> None:
        """Quickstart of 0.1.0."""
        result = post_meter_usage(
            tenant_id=self.tenant_id,
            device_id=self.device_id,
            meter_id="document.basic.page",
            kafka_url=self.kafka_url,
            portal_url=self.portal_url,
            total_usage=24,
            api_key=self.api_key,
        )
        assert result is not None
        assert result["status"] == "queued"
        assert said(original, "meter_id", "total_usage") == [("document.basic.page", 24)]

    def test_the_example_with_metadata_runs(self, original: str) -> None:
        """With metadata, 0.1.0."""
        result = post_meter_usage(
            tenant_id=self.tenant_id,
            device_id=self.device_id,
            meter_id="rule.executed.small",
            kafka_url=self.kafka_url,
            portal_url=self.portal_url,
            api_key=self.api_key,
            total_usage=1,
            metadata={
                "rule_id": "rule-abc123",
                "batch_id": "batch-999",
            },
        )
        assert result is not None
        assert said(original, "metadata") == [
            ({"rule_id": "rule-abc123", "batch_id": "batch-999"},)
        ]

    @pytest.mark.parametrize("post", [post_ai_meter_usage, post_meter_usage])
    @pytest.mark.parametrize(
        ("boundary", "time"), [("start_time", 1759791552000), ("end_time", 1779799552000)]
    )
    def test_the_examples_of_sessions_run(
        self, original: str, post: Callable[..., object], boundary: str, time: int
    ) -> None:
        """AI enabled and disabled, of 0.1.0 (the first function) and of 0.0.4 (the second)."""
        wire = {
            "kafka_url": self.kafka_url,
            "portal_url": self.portal_url,
            "api_key": self.api_key,
        }
        result = post(
            tenant_id=self.tenant_id,
            device_id=self.device_id,
            meter_id="chat.on.time_hours",
            **(wire if post is post_ai_meter_usage else {}),
            **{boundary: time},
        )
        assert result is not None
        assert said(original, "ai_event", boundary) == [(True, time)]

    def test_the_first_quickstart_runs(self, original: str) -> None:
        """Quickstart of 0.0.4."""
        result = post_meter_usage(
            tenant_id=self.tenant_id,
            device_id=self.device_id,
            meter_id="document.basic.page",
            total_usage=24,
        )
        assert result is not None
        assert said(original, "total_usage") == [(24,)]

    def test_arguments_by_position_run(self, original: str) -> None:
        """The order of 0.0.4: tenant, device, meter, usage."""
        assert post_meter_usage(self.tenant_id, self.device_id, "document.basic.page", 24)
        assert said(original, "tenant_id", "device_id", "meter_id", "total_usage") == [
            ("tenant_123", "us-east-ing1", "document.basic.page", 24)
        ]

    def test_session_arguments_by_position_run(self, original: str) -> None:
        """The order of 0.0.4: tenant, device, meter, start, end."""
        assert post_ai_meter_usage(self.tenant_id, self.device_id, "m", None, 1779799552000)
        assert said(original, "start_time", "end_time") == [(None, 1779799552000)]

    def test_urls_left_out_run(self, original: str) -> None:
        """The original's form for internal URLs, `portal_url=None, api_key=None`."""
        result = post_meter_usage(
            tenant_id=self.tenant_id,
            device_id=self.device_id,
            meter_id="m",
            kafka_url="https://stream.app.domain.com",
            portal_url=None,
            api_key=None,
            total_usage=1,
            timestamp=1759791552000,
        )
        assert result is not None
        assert [event_time for _, _, event_time, _ in stored(original)] == [1759791552000]


def test_a_url_in_the_place_of_usage_is_never_taken_for_usage(default_outbox: str) -> None:
    """The order of 0.0.6, with a URL in fourth place, is refused and named rather than misread."""
    with pytest.raises(InvalidUsageType, match="total_usage"):
        post_meter_usage("t", "d", "m", "https://stream.app.domain.com", 24)  # type: ignore[arg-type]
    assert not os.path.exists(default_outbox)


def test_a_fork_and_the_parents_close_lose_nothing(outbox_path: Path) -> None:
    """A child that posts on after its parent has closed writes into the same outbox."""
    with MeterClient(outbox_path) as client:
        for _ in range(3):
            client.post("t", "d", "m", 1)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(writer)
                os.read(reader, 1)  # until the parent has closed
                for _ in range(20):
                    client.post("t", "child", "m", 1)
                status = 0
            finally:
                os._exit(status)
        os.close(reader)
        client.close()
        os.write(writer, b"!")
        os.close(writer)
        for _ in range(20):
            client.post("t", "parent", "m", 1)
        assert os.waitpid(child, 0)[1] == 0
    with contextlib.closing(sqlite3.connect(outbox_path)) as plain:
        seqs = [seq for (seq,) in plain.execute("SELECT seq FROM events ORDER BY seq")]
        assert seqs == list(range(1, 44))
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
