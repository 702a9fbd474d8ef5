"""The n-th operation fails, for each n: what was refused is nowhere, what was not is there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import MeterClient, Settings
from tests.durability.crashing import RAM
from tests.durability.failing import MAX_BYTES, SCENARIOS
from tests.durability.programs import METER, counts_in

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder in memory, where that can be had: hundreds of outboxes are made in it."""
    with tempfile.TemporaryDirectory(dir=RAM) as made:
        yield made


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that lets system calls fail, compiled from its source."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no system calls can be made to fail: that needs Linux and a C compiler, cc")
    library = str(tmp_path_factory.mktemp("preloaded") / "failing_disk.so")
    source = str(HERE / "failing_disk.c")
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        pytest.skip(f"no system calls can be made to fail: {built.stderr.strip()[-200:]}")
    return library


def attempts(folder: str, how: str, what: str, follows: str, **environment: str) -> list[Any]:
    """What was said in each of the attempts."""
    ran = subprocess.run(
        [sys.executable, str(HERE / "failing.py"), how, what, follows, folder, "1"],
        env={**os.environ, "METER_CONFIG": os.devnull, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    # 3 is the end: an n that is more than there are operations.
    assert ran.returncode == 3, ran.stderr
    assert "Traceback" not in ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def numbers_in(path: str) -> list[int]:
    """The numbers of the events in a file."""
    connection = sqlite3.connect(path)
    try:
        return [
            number
            for (number,) in connection.execute("SELECT total_usage FROM events ORDER BY seq")
        ]
    finally:
        connection.close()


def check(said: dict[str, Any]) -> None:
    """See that an outbox is as its poster was told, and that it goes on."""
    path = said["path"]
    settings = Settings(outbox=path, max_bytes=MAX_BYTES)
    with MeterClient(settings=settings) as client:
        client.post("t", "d", METER, 1_000_000)
    # An error of the disk is no damage of the file.
    assert [name for name in os.listdir(os.path.dirname(path)) if "damaged" in name] == []
    counts = counts_in(path)
    kept = [number for number in said["acknowledged"] if number not in set(said["settled"])]
    assert numbers_in(path) == [*kept, 1_000_000], said
    assert counts.delivered == len(said["settled"]), said
    assert said["errors_when_healed"] == [], said
    assert said["refused"] == [] or said["errors"], said


@pytest.mark.parametrize(
    ("what", "follows"),
    [
        pytest.param(
            what,
            follows,
            marks=pytest.mark.xfail(
                (what, follows) == ("closing", "for-good"),
                strict=True,
                reason="an event whose sync failed is accepted after all where no write to the"
                " log worked any more until the outbox was closed",
            ),
        )
        for what in SCENARIOS
        for follows in ("once", "for-good")
    ],
)
def test_no_failing_system_call_makes_a_receipt_untrue(
    preloaded: str, folder: str, what: str, follows: str
) -> None:
    """Each write, truncation and sync in turn fails, once or from then on, by EIO or ENOSPC."""
    made = attempts(folder, "system", what, follows, LD_PRELOAD=preloaded, FAILING_FOLDER=folder)
    assert len(made) > 10
    for said in made:
        check(said)
    assert any(said["errors"] for said in made)


@pytest.mark.parametrize("follows", ["once", "for-good"])
@pytest.mark.parametrize("what", SCENARIOS)
def test_no_failing_statement_makes_a_receipt_untrue(folder: str, what: str, follows: str) -> None:
    """Each statement given to SQLite in turn fails, once or from then on."""
    made = attempts(folder, "sqlite", what, follows)
    assert len(made) > 10
    for said in made:
        check(said)
    assert any(said["errors"] for said in made)
