"""The demo: that it succeeds, that it would fail if anything went wrong, that nothing stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.usage import usage_event_from
from meter_worker.demo import processes as demo_processes
from meter_worker.demo import run_demo
from meter_worker.demo.comparison import (
    Event,
    compare,
    ledger_problems,
    posted_events,
    received_event,
)
from meter_worker.demo.events import built_in_lines
from meter_worker.demo.failure import DemoFailed
from meter_worker.demo.processes import Processes
from meter_worker.demo.sandbox_view import SandboxView
from meter_worker.demo.telling import table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Far more than it takes; the demo itself gives up earlier.
PATIENCE_SECONDS = 100

PAGES: dict[str, Any] = {
    "tenant_id": "t",
    "device_id": "d",
    "meter_id": "page.processed.basic",
    "total_usage": 3,
    "timestamp": 1_792_972_800_000,
    "metadata": {"file": "ü.pdf", "urgent": True, "dpi": 300},
}
CHAT: dict[str, Any] = {
    "tenant_id": "t",
    "device_id": "d",
    "meter_id": "chat.on.time_hours",
    "start_time": 1_792_972_801_000,
    "idempotency_key": "chat-1",
}


@contextlib.contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process, where other settings and another temporary folder are in force."""
    elsewhere = {
        "METER_CONFIG": str(folder / "there-is-no-such-file"),
        "METER_OUTBOX": str(folder / "not-this-one.db"),
        "METER_STREAM_URL": "http://127.0.0.1:1",
        "TMPDIR": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "meter_worker", "demo"],
        env={**os.environ, **elsewhere},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_nothing_is_left(process: subprocess.Popen[str], folder: Path) -> None:
    """No process of its group runs any more, and its temporary folder is gone."""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert list(folder.iterdir()) == []


def received(line: dict[str, Any], key: str = "k", **changes: object) -> Event:
    """What arrives if a line was posted, where nothing goes wrong but the changes."""
    event = usage_event_from(line)
    value = {name: text for name, text in line.items() if name != "timestamp"}
    value |= {"metadata": event.metadata, "event_time": event.event_time(now=0)}
    return received_event(value | {"idempotency_key": line.get("idempotency_key", key)} | changes)


def test_the_demo_ends_with_every_event_received_once(tmp_path: Path) -> None:
    """Over an outage, a lost reply and a SIGKILL, what was posted is what would be billed."""
    with demo(tmp_path) as process:
        told, complaints = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, complaints) == (0, ""), f"{told}\n{complaints}"
        assert_nothing_is_left(process, tmp_path)
    (total,) = re.findall(r"(?m)^total .*", told)
    posted, arrived, keys, again, missing, units_posted, units_arrived = (
        int(number.replace(",", "")) for number in total.split()[1:]
    )
    assert (posted, keys, missing) == (2_000, 2_000, 0)
    assert units_posted == units_arrived > 0
    assert (again, arrived) == (arrived - posted, posted + again)
    assert again > 0, "the lost reply made no re-delivery"
    assert "All 2,000 events arrived, and each is billed once." in told
    assert not {"\r", "\033"} & set(told)


def test_the_demo_fails_where_an_event_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the outbox takes for delivered and the backend does not have is found out."""
    file = tmp_path / "usage.jsonl"
    file.write_text(f"{json.dumps(PAGES)}\n{json.dumps(CHAT)}\n")
    whole = SandboxView.values

    def one_is_gone(sandbox: SandboxView) -> list[dict[str, Any]]:
        return [value for value in whole(sandbox) if value["idempotency_key"] != "chat-1"]

    monkeypatch.setattr(SandboxView, "values", one_is_gone)
    assert run_demo(str(file)) is False
    told = capsys.readouterr()
    assert re.search(
        r"This must not happen .*\n   1 event was posted and never received\n$", told.out
    )
    assert told.err == ""


@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(one: signal.Signals, tmp_path: Path) -> None:
    """Whoever stops the demo has no stray worker, no stray backend and no stray files."""
    with demo(tmp_path) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not list(tmp_path.glob("*/sandbox.log")):
            assert process.poll() is None, "it ended before all of its processes were started"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(one)
        process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode not in (0, -signal.SIGKILL)
        assert_nothing_is_left(process, tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no usage events"),
        ('{"tenant_id": "t"}\n', "line 1 of .* is not a usage event: device_id"),
        ("\n[1]\n", "line 2 of .* is not a usage event: "),
        ("{\n", "line 1 of .* is not a usage event: "),
    ],
)
def test_a_file_without_usage_is_refused_at_once(
    content: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be posted whole is named with its line, and nothing is started."""
    file = tmp_path / "usage.jsonl"
    file.write_text(content)
    assert run_demo(str(file)) is False
    told = capsys.readouterr()
    assert told.out == ""
    assert re.search(complaint, told.err)


def test_a_worker_that_ends_fails_the_step_that_waits_for_it(tmp_path: Path) -> None:
    """The failure says what ended, and its log says why."""
    with Processes(str(tmp_path), {"METER_BATCH_SIZE": "none at all"}) as processes:
        worker = processes.start("worker")
        with pytest.raises(DemoFailed, match="the worker ended by itself, with exit code 2"):
            processes.wait("a wonder", lambda: False, bool, beside=worker)
        assert "METER_BATCH_SIZE" in processes.log_ends()["worker"]


def test_a_step_in_which_nothing_changes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step waits for ever."""
    monkeypatch.setattr(demo_processes, "PATIENCE_SECONDS", 0.1)
    with Processes(str(tmp_path), {}) as processes:
        sandbox = processes.start("sandbox", "--port", "0")
        with pytest.raises(DemoFailed, match="waited for a wonder, and nothing has changed"):
            processes.wait("a wonder", lambda: False, bool, beside=sandbox)


def test_the_built_in_events_are_2000_good_ones() -> None:
    """The demo's own events are valid, differ from each other, and use text beyond ASCII."""
    lines = list(built_in_lines())
    accepted = [usage_event_from(line) for line in lines]
    assert (len(accepted), len(set(posted_events(lines)))) == (2_000, 2_000)
    assert len({(event.tenant_id, event.device_id) for event in accepted}) == 4
    assert not all(event.payload.isascii() for event in accepted)


def test_what_came_again_under_its_key_is_no_problem() -> None:
    """At least once is what is promised: a repeated key is billed once."""
    compared = compare(posted_events([PAGES, CHAT]), [received(PAGES), received(CHAT)] * 2)
    assert compared.total == ("total", 2, 4, 2, 2, 0, 3, 3)
    assert compared.problems == []


def test_a_key_of_the_callers_own_counts_once_however_often_it_is_posted() -> None:
    """Posting the same event again adds nothing, so it is expected once."""
    compared = compare(posted_events([CHAT, PAGES, CHAT]), [received(CHAT), received(PAGES)])
    assert (compared.total.posted, compared.problems) == (2, [])


def test_equal_events_without_keys_are_told_apart_by_number() -> None:
    """Two equal uses are two events, and one of them is not enough."""
    posted = posted_events([PAGES, PAGES])
    assert compare(posted, [received(PAGES, "k"), received(PAGES, "l")]).problems == []
    assert compare(posted, [received(PAGES, "k")] * 2).total.missing == 1


def test_an_event_that_names_no_time_may_have_any() -> None:
    """It happened when it was posted, which only the outbox knows."""
    timeless = {name: value for name, value in PAGES.items() if name != "timestamp"}
    compared = compare(posted_events([timeless, PAGES]), [received(PAGES), received(PAGES, "l")])
    assert compared.problems == []


@pytest.mark.parametrize(
    ("arrived", "problems"),
    [
        (
            [received(CHAT)],
            [
                "1 event was posted and never received",
                "page.processed.basic: 3 units posted, 0 received",
            ],
        ),
        (
            [received(CHAT), received(PAGES, total_usage=4)],
            [
                "1 event was posted and never received",
                "1 event was received and never posted like that",
                "page.processed.basic: 3 units posted, 4 received",
            ],
        ),
        (
            [received(CHAT), received(PAGES), received(PAGES, "l")],
            [
                "1 event was received and never posted like that",
                "page.processed.basic: 3 units posted, 6 received",
            ],
        ),
        (
            [received(CHAT, idempotency_key="another"), received(PAGES)],
            [
                "1 event was posted and never received",
                "1 event was received and never posted like that",
            ],
        ),
        (
            [received(CHAT), received(PAGES), received(PAGES, event_time=1_792_972_800_001)],
            ["1 event was not what came before under the same key"],
        ),
    ],
    ids=["missing", "other units", "billed twice", "other key", "changed when sent again"],
)
def test_whatever_would_change_the_bill_is_a_problem(
    arrived: list[Event], problems: list[str]
) -> None:
    """The demo fails where an event is lost, altered, invented or billed twice."""
    assert compare(posted_events([PAGES, CHAT]), arrived).problems == problems


@pytest.mark.parametrize("member", ["tenant_id", "device_id", "metadata", "event_time"])
def test_no_part_of_an_event_may_change_on_the_way(member: str) -> None:
    """An event counts as received only if all of it is."""
    altered = received(PAGES, **{member: {} if member == "metadata" else "other"})
    assert compare(posted_events([PAGES]), [altered]).problems != []


@pytest.mark.parametrize(
    ("counts", "holds"),
    [
        ({"accepted": 5, "delivered": 3, "pending": 0, "dead": 1, "removed": 1}, True),
        ({"accepted": 5, "delivered": 4, "pending": 0, "dead": 0, "removed": 0}, False),
        ({"accepted": 4, "delivered": 4, "pending": 0, "dead": 0, "removed": 0}, False),
    ],
)
def test_the_books_of_the_outbox_have_to_balance(counts: dict[str, int], holds: bool) -> None:
    """Accepted is what was posted, and each accepted event is in one place."""
    assert (ledger_problems(counts, posted=5) == []) is holds


def test_on_a_narrow_terminal_there_are_two_tables() -> None:
    """Lines that wrap cannot be read; each of the two tables has its own total."""
    big = {**PAGES, "total_usage": 2**62}
    compared = compare(posted_events([big, CHAT]), [received(big), received(CHAT)])
    assert len(table(compared)) == 1
    events, units = table(compared, columns=80)
    assert max(map(len, (events + "\n" + units).splitlines())) <= 80
    assert events.splitlines()[-1].split() == ["total", "2", "2", "2", "0", "0"]
    assert units.splitlines()[-1].split() == ["total", f"{2**62:,}", f"{2**62:,}"]
