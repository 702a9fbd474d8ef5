from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from meter_worker.sandbox import Sandbox
from tests.integration.workers import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an outbox that does not exist yet."""
    outbox = tmp_path / "outbox.db"
    monkeypatch.setenv("METER_OUTBOX", str(outbox))
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    return outbox


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A backend that the environment names."""
    with Sandbox() as running:
        monkeypatch.setenv("METER_STREAM_URL", running.url)
        monkeypatch.setenv("METER_ACCOUNTS_URL", running.url)
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start workers; none of them is left when the test ends."""
    children: list[Child] = []

    def start_here(*arguments: str, python: tuple[str, ...] = ("-m", "meter_worker")) -> Child:
        children.append(Child(tmp_path, sys.executable, *python, "worker", *arguments))
        return children[-1]

    yield start_here
    for child in children:
        child.process.kill()
        child.process.wait()
