from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.integration.operating import Operator

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Operator:
    """Somebody at the command line, with an outbox and a backend that cannot be reached."""
    path = str(tmp_path / "outbox.db")
    monkeypatch.setenv("METER_OUTBOX", path)
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    # Nobody answers there, and nobody else is asked.
    monkeypatch.setenv("METER_STREAM_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("METER_ACCOUNTS_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return Operator(path, capsys)
