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
    """Somebody at the command line, whose settings name an outbox and nothing else."""
    path = str(tmp_path / "outbox.db")
    monkeypatch.setenv("METER_OUTBOX", path)
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    monkeypatch.chdir(tmp_path)
    return Operator(path, capsys)
