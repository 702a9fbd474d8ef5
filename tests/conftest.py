from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.postgres.server import PostgresServer


@pytest.fixture(scope="session")
def _state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, _state_folder: Path) -> None:
    """No setting of the machine reaches a test, and no default leads out of its folder."""
    for name in [name for name in os.environ if name.upper().startswith("METER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(_state_folder))


@pytest.fixture
def outbox_path(tmp_path: Path) -> str:
    """A place for an outbox: a folder that is there, a file that is not."""
    return str(tmp_path / "outbox.db")


@pytest.fixture(scope="session")
def postgres_server() -> Generator[PostgresServer]:
    """A PostgreSQL server of this session's own, or a skip where there is none to be had."""
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    from tests.postgres.server import PostgresServer  # noqa: PLC0415  # of an extra

    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """A database without an outbox."""
    postgres_server.clear()
    return postgres_server.url()
