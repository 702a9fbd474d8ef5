from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from meter_lib._sqlite.forking import close_all
from meter_worker.sandbox import Sandbox
from tests.integration.operating import Operator
from tests.promises.delivering import Device

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
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


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Generator[None]:
    """Python 3.13 and later warn of a connection that goes unclosed, in whatever test that is."""
    yield
    close_all()


@pytest.fixture
def outbox_path(tmp_path: Path) -> str:
    """A place for an outbox: a folder that is there, a file that is not."""
    return str(tmp_path / "outbox.db")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device and its backend; no worker of it is left when the test ends."""
    with Sandbox() as sandbox:
        made = Device(tmp_path, sandbox)
        yield made
        made.end()


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
