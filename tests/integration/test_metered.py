"""What a program relies on whose functions are decorated with `metered`."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import (
    InvalidUsage,
    InvalidUsageType,
    MeterClient,
    OutboxUnavailable,
    metered,
)
from tests.fakes import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from pathlib import Path

NOON = 1_759_791_552_000
IDS = ("t", "d", "m")


@pytest.fixture(autouse=True)
def default_outbox(outbox_path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The outbox that the environment names."""
    monkeypatch.setenv("METER_OUTBOX", outbox_path)
    return outbox_path


@pytest.fixture
def broken_outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An outbox in a place where none can be, named by the environment."""
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "outbox.db")
    monkeypatch.setenv("METER_OUTBOX", path)
    return path


def said(path: str, *names: str) -> list[tuple[Any, ...]]:
    """Of each stored event, these things, read without this library."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT payload FROM events ORDER BY seq").fetchall()
    connection.close()
    return [tuple(json.loads(payload).get(name) for name in names) for (payload,) in rows]


def plain(units: int | Callable[[Any], int] | None, **more: Any) -> Callable[[Any], Any]:
    """A function that returns what it is given, or raises it, metered."""

    @metered(*IDS, units=units, **more)
    def give(what: Any) -> Any:
        if isinstance(what, BaseException):
            raise what
        return what

    return give


def coroutine(units: int | Callable[[Any], int] | None, **more: Any) -> Callable[[Any], Any]:
    """The same as a coroutine function, run to its end."""

    @metered(*IDS, units=units, **more)
    async def give(what: Any) -> Any:
        await asyncio.sleep(0)
        if isinstance(what, BaseException):
            raise what
        return what

    return lambda what: asyncio.run(give(what))


both = pytest.mark.parametrize("made", [plain, coroutine])


@both
def test_each_call_counts_its_units(default_outbox: str, made: Callable[..., Any]) -> None:
    """A number is of each call, a function is of what the call returned; results come through."""
    assert [made(1)("x"), made(20)("y"), made(len)(["a", "b", "c"]), made(0)(None)] == [
        "x",
        "y",
        ["a", "b", "c"],
        None,
    ]
    assert said(default_outbox, "tenant_id", "device_id", "meter_id", "total_usage") == [
        (*IDS, 1),
        (*IDS, 20),
        (*IDS, 3),
        (*IDS, 0),
    ]


@both
@pytest.mark.parametrize("units", [1, len])
def test_a_call_that_raises_counts_nothing(
    tmp_path: Path, made: Callable[..., Any], units: Any
) -> None:
    """What did not come to its end is no usage; the error goes on to the caller."""
    with pytest.raises(KeyError):
        made(units)(KeyError("x"))
    assert list(tmp_path.iterdir()) == []


@both
def test_a_call_is_metered_by_its_time(default_outbox: str, made: Callable[..., Any]) -> None:
    """Without units, a call is start and end of use, also where it raises."""
    assert made(None)("x") == "x"
    with pytest.raises(KeyError):
        made(None)(KeyError("x"))
    events = said(default_outbox, "ai_event", "start_time", "end_time")
    assert [(ai, start is None, end is None) for ai, start, end in events] == [
        (True, False, True),
        (True, True, False),
    ] * 2


def test_the_time_of_a_call_is_what_has_passed(outbox_path: str) -> None:
    """The start is on the disk before the call begins; a clock set back changes nothing."""
    clock = ManualClock(NOON)
    with MeterClient(outbox_path, clock=clock) as client:

        @metered(*IDS, client=client)
        def work() -> None:
            assert said(outbox_path, "start_time") == [(NOON,)]
            clock.advance(3)
            clock.jump(-60)

        work()
    assert said(outbox_path, "start_time", "end_time") == [(NOON, None), (None, NOON + 3_000)]


@both
@pytest.mark.parametrize("units", [1, None])
def test_a_broken_outbox_stops_no_call(
    broken_outbox: str, made: Callable[..., Any], caplog: pytest.LogCaptureFixture, units: Any
) -> None:
    """The program that is metered goes on; the log tells what was not recorded."""
    assert made(units)("x") == "x"
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "meter_lib")
    assert broken_outbox in record.getMessage()


@both
@pytest.mark.parametrize("units", [1, None])
def test_a_client_raises(broken_outbox: str, made: Callable[..., Any], units: Any) -> None:
    """Whoever gives a client gets its errors in place of the result."""
    with MeterClient(broken_outbox) as client, pytest.raises(OutboxUnavailable, match="outbox"):
        made(units, client=client)("x")


@both
@pytest.mark.parametrize(
    ("result", "error"), [(-1, InvalidUsage), (0.5, InvalidUsageType), (None, InvalidUsage)]
)
def test_units_that_are_no_number_are_refused(
    tmp_path: Path, made: Callable[..., Any], result: Any, error: type[Exception]
) -> None:
    """A function that makes no units of a result is a mistake in the program: it is told so."""
    with pytest.raises(error, match="total_usage"):
        made(lambda what: what)(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"tenant_id": ""}, InvalidUsage, "tenant_id"),
        ({"meter_id": 5}, InvalidUsageType, "meter_id"),
        ({"units": -1}, InvalidUsage, "total_usage"),
        ({"units": 1.5}, InvalidUsageType, "total_usage"),
        ({"units": True}, InvalidUsageType, "total_usage"),
        ({"meter_id": "page.processed.basic"}, InvalidUsage, "units must be given"),
    ],
)
def test_a_wrong_decorator_is_refused_where_it_stands(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A mistake shows when the program is loaded, not at the first call."""
    given = {"tenant_id": "t", "device_id": "d", "meter_id": "m"} | arguments
    with pytest.raises(error, match=words):
        metered(**given)


def test_a_generator_is_refused() -> None:
    """Its call returns before anything is done: there is nothing that could be metered by it."""

    def numbers() -> Generator[int]:
        yield 1

    async def anumbers() -> AsyncGenerator[int]:
        yield 1

    for generator in (numbers, anumbers):
        with pytest.raises(InvalidUsageType, match="generator"):
            metered(*IDS, units=1)(generator)


def test_a_decorated_function_looks_as_before(default_outbox: str) -> None:
    """Name, signature, docstring and kind stay, and methods can be decorated."""

    class Press:
        @metered(*IDS, units=lambda pages: pages)
        def print(self, pages: int, *, copies: int = 1) -> int:
            """Print."""
            return pages * copies

        @metered(*IDS, units=1)
        async def aprint(self) -> None:
            """Print later."""

    assert (Press.print.__name__, Press.print.__doc__) == ("print", "Print.")
    assert list(inspect.signature(Press.print).parameters) == ["self", "pages", "copies"]
    assert inspect.iscoroutinefunction(Press.aprint)
    assert not inspect.iscoroutinefunction(Press.print)
    assert Press().print(3, copies=2) == 6
    assert said(default_outbox, "total_usage") == [(6,)]
