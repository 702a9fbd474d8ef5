from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from meter_lib._postgres import PostgresOutbox
from meter_worker.sandbox import Sandbox
from tests.promises.delivering import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from psycopg.rows import TupleRow


@pytest.fixture
def open_it(postgres_url: str) -> Generator[Callable[[], PostgresOutbox]]:
    """Open the one outbox of this test, once more at each call."""
    opened: list[PostgresOutbox] = []

    def open_it() -> PostgresOutbox:
        opened.append(PostgresOutbox(postgres_url, max_bytes=64 * 2**20))
        return opened[-1]

    yield open_it
    for outbox in opened:
        outbox.close()


@pytest.fixture
def connection(postgres_url: str) -> Generator[psycopg.Connection[TupleRow]]:
    """A connection of the program that records."""
    with psycopg.connect(postgres_url) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str) -> Generator[Device]:
    """Hosts that share an outbox on a server, and their backend; no worker of them is left."""
    with Sandbox() as sandbox:
        made = Device(tmp_path, sandbox, outbox=postgres_url)
        yield made
        made.end()
