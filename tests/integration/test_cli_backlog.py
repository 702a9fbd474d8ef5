"""The picture in `meter-lib status`: what waits, by when it was recorded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meter_lib import MeterClient
from tests.fakes import ManualClock
from tests.integration.operating import EVENT

if TYPE_CHECKING:
    from tests.integration.operating import Operator

HOUR = 3_600_000


def record_long_ago(path: str, *counts: int, hours_a_count: int = 1) -> None:
    """Record so many events each hour (or so many hours), the last of them half an hour ago."""
    now = time.time_ns() // 1_000_000
    for number, count in enumerate(counts, start=1):
        ago = (len(counts) - number) * hours_a_count * HOUR + HOUR // 2
        clock = ManualClock(now - ago)
        with MeterClient(path, clock=clock) as client:
            client.post_many([EVENT] * count)


def bar(operator: Operator, **environment: str) -> list[str]:
    """The line under `pending`, in its two parts; nothing where it is the next row of the table."""
    stdout, stderr = operator.process("status", **environment).communicate(timeout=30)
    assert stderr == ""
    lines = stdout.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("pending"))
    return lines[place + 1].split("  ")[-2:] if lines[place + 1].startswith(" ") else []


def test_status_pictures_the_backlog_of_the_last_hours(operator: Operator) -> None:
    """A column is as tall as what still waits of its hour; an hour without any is a dot."""
    record_long_ago(operator.path, 80, 0, 10, 40, 1)
    assert bar(operator, PYTHONIOENCODING="utf-8") == [
        "\u2588\u00b7\u2581\u2584\u2581",
        "recorded in the last 5 h, 1 h a column",
    ]
    assert bar(operator, PYTHONIOENCODING="ascii")[0] == "@_.=."


def test_a_long_outage_has_wider_columns(operator: Operator) -> None:
    """Three days fit into the same picture."""
    record_long_ago(operator.path, 5, 0, 10, hours_a_count=30)
    picture, words = bar(operator, PYTHONIOENCODING="ascii")
    assert words == "recorded in the last 63 h, 3 h a column"
    assert (len(picture), picture[0], picture[-1], picture.count("_")) == (21, "=", "@", 19)


def test_a_young_backlog_has_no_picture(operator: Operator) -> None:
    """Where nothing has waited for an hour, there is nothing to see."""
    operator.post("a")
    assert bar(operator) == []
