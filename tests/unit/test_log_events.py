"""The log: each line has a name that is documented, and what repeats is written sparingly."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meter_worker.backend import Unavailable
from meter_worker.log_events import LOG_EVENTS, LinesAMinute
from meter_worker.log_page import page
from tests.fakes import accept, refuse_where
from tests.unit.flusher_bench import Bench, called, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDERS = {"meter_lib": ROOT / "meter_lib", "meter_worker": ROOT / "worker" / "meter_worker"}
# A backend to develop against has no operator.
SANDBOX = FOLDERS["meter_worker"] / "sandbox"
DAY = 86_400_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A flusher over a new outbox."""
    made = Bench(tmp_path / "outbox.db")
    yield made
    made.outbox.close()


def lines_in(folder: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call that writes a line to the log, with where it is."""
    for path in sorted(folder.rglob("*.py")):
        if SANDBOX in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id.strip("_") == "logger"
                and node.func.attr in {"debug", "info", "warning", "error", "critical", "log"}
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def levels_of(call: ast.Call, text: str) -> set[str]:
    """Return the levels that a line may have."""
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr != "log":
        return {call.func.attr.upper()}
    named = set(re.findall(r"logging\.([A-Z]+)", ast.unparse(call.args[0])))
    # A level that is worked out before the call is looked for in all of the module.
    return named or set(re.findall(r"logging\.([A-Z]+)\b", text))


def extra_of(call: ast.Call, source: str) -> ast.Dict | None:
    """Return what a line carries beside its words, as it is written."""
    given = next((word.value for word in call.keywords if word.arg == "extra"), None)
    if isinstance(given, ast.Name):
        named = given.id
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == named:
                given = node.value
    return given if isinstance(given, ast.Dict) else None


@pytest.mark.parametrize("logger", sorted(FOLDERS))
def test_each_line_has_a_documented_name_level_and_fields(logger: str) -> None:
    """The table is the code's: nothing is logged that is not in it, and nothing else is in it."""
    levels: defaultdict[str, set[str]] = defaultdict(set)
    fields: defaultdict[str, set[str]] = defaultdict(set)
    for place, call in lines_in(FOLDERS[logger]):
        source = (ROOT / place.partition(":")[0]).read_text(encoding="utf-8")
        extra = extra_of(call, source)
        assert extra is not None, f"{place}: no extra"
        members = {
            ast.literal_eval(key): value
            for key, value in zip(extra.keys, extra.values, strict=True)
            if key
        }
        assert "event" in members, f"{place}: no event"
        name = ast.literal_eval(members.pop("event"))
        levels[name] |= levels_of(call, source)
        fields[name] |= set(members)
    documented = LOG_EVENTS[logger]
    assert dict(levels) == {event.name: set(event.levels.split()) for event in documented}
    assert {name: " ".join(sorted(of)) for name, of in fields.items()} == {
        event.name: event.fields for event in documented
    }


def test_no_name_is_used_twice() -> None:
    """A name says what happened, whichever logger it comes from."""
    names = [event.name for events in LOG_EVENTS.values() for event in events]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)


@pytest.mark.parametrize("logger", sorted(FOLDERS))
def test_each_package_logs_to_its_own_logger(logger: str) -> None:
    """A host finds what we say in two places, and nowhere else."""
    names = {
        name
        for path in FOLDERS[logger].rglob("*.py")
        if SANDBOX not in path.parents
        for name in re.findall(
            r"ogger = logging.getLogger\((.+?)\)$", path.read_text(), re.MULTILINE
        )
    }
    assert names == {f'"{logger}"'}


def test_a_program_without_any_logging_sees_that_usage_is_refused(tmp_path: Path) -> None:
    """The library installs no handler, so Python's last resort, stderr, shows it."""
    (tmp_path / "file").touch()
    program = (
        "import logging, meter_lib\n"
        "assert meter_lib.post_meter_usage('t', 'd', 'page.processed.basic', 1) is None\n"
        "assert not logging.getLogger('meter_lib').handlers\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "METER_OUTBOX": str(tmp_path / "file" / "outbox.db")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "usage was not recorded" in ran.stderr


def test_the_page_of_the_log_is_that_of_the_code() -> None:
    """What the docs say of the log is what is logged."""
    written = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    assert written == page(), "stale: run make docs"


def outage(bench: Bench, *details: str, milliseconds: int = 3 * DAY) -> int:
    """Let the backend be down for so long, in these ways by turns; return the attempts."""
    begun, attempts = bench.clock.steady(), 0
    while bench.clock.steady() - begun < milliseconds:
        bench.backend.otherwise = Unavailable(details[attempts % len(details)])
        bench.flush()
        attempts += 1
        bench.clock.advance_to(bench.flusher.next_at or 0)
    return attempts


def test_an_outage_of_days_takes_a_few_lines(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """One for each doubling of the failures in a row, one when it is over; the rest is DEBUG."""
    caplog.set_level(logging.DEBUG)
    bench.post("a")
    attempts = outage(bench, "HTTP 503")
    assert attempts > 1000
    said = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert len(said) == attempts.bit_length()
    assert len(caplog.records) == attempts
    bench.backend.otherwise = accept
    caplog.clear()
    bench.flush()
    assert [(vars(record)["event"], record.levelname) for record in caplog.records] == [
        ("link_up", "INFO")
    ]


def test_a_link_that_fails_in_two_ways_by_turns_is_no_news(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A change of the trouble is told, at most every ten minutes."""
    caplog.set_level(logging.INFO)
    bench.post("a")
    attempts = outage(bench, "HTTP 503", "reset", milliseconds=DAY)
    assert attempts.bit_length() < len(caplog.records) <= attempts.bit_length() + 6 * 24


def test_a_restart_in_an_outage_is_told_of_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever restarts a worker sees in its log what is the matter."""
    bench.post("a")
    outage(bench, "HTTP 503", milliseconds=DAY // 24)
    caplog.clear()
    bench.restarted()
    bench.flush()
    assert len(caplog.records) == 1


def test_a_heap_of_dead_letters_takes_ten_lines_a_minute(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The list has them all; the log says that there are some, and why."""
    caplog.set_level(logging.DEBUG)
    for number in range(30):
        bench.post(f"bad{number}", meter_id="unknown")
    bench.post(*numbered("g", 40))
    bench.backend.otherwise = refuse_where(called("bad"))
    for another in numbered("another", 40):
        bench.post(another)
        bench.flush_all()
    assert bench.counts["dead"] == 30
    levels = [
        record.levelname for record in caplog.records if vars(record)["event"] == "dead_lettered"
    ]
    assert set(levels) == {"ERROR", "DEBUG"}
    assert (levels[:11], len(levels)) == (["ERROR"] * 10 + ["DEBUG"], 30)


def test_a_limit_of_lines_begins_anew_each_minute() -> None:
    """It holds back a flood, and nothing for good."""
    limit = LinesAMinute(2)
    assert [limit.has_room(now) for now in (0, 1, 2, 59_999, 60_000, 60_001, 60_002)] == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]
