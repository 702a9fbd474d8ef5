"""How the tables come to be on a server, and who may use them."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from meter_lib import MeterError, OutboxMissing, SchemaTooNew, Settings
from meter_lib._postgres import PostgresOutbox
from meter_lib.opening import open_outbox
from meter_migrations.postgres import LATEST

if TYPE_CHECKING:
    from tests.postgres.server import PostgresServer


def test_any_number_of_hosts_may_make_the_outbox_at_once(postgres_url: str) -> None:
    """Whoever comes first makes it, the others find it made."""
    together = threading.Barrier(8)
    names: list[str] = []

    def make() -> None:
        outbox = PostgresOutbox(postgres_url, max_bytes=2**22)
        together.wait()
        names.append(outbox.outbox_id)
        outbox.close()

    making = [threading.Thread(target=make) for _ in range(8)]
    for thread in making:
        thread.start()
    for thread in making:
        thread.join()
    assert (len(names), len(set(names))) == (8, 1)


def test_looking_makes_no_outbox(postgres_url: str) -> None:
    """Where there is none, a reading command says so and leaves the database as it is."""
    settings = Settings(outbox=postgres_url)
    with (
        contextlib.closing(open_outbox(settings, read_only=True)) as outbox,
        pytest.raises(OutboxMissing, match="there is no outbox in postgresql"),
    ):
        outbox.status()
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'meter_lib'")
        assert found.fetchall() == []


def test_an_outbox_of_a_newer_version_is_left_untouched(postgres_url: str) -> None:
    """Nobody writes to a schema that he does not know."""
    with contextlib.closing(open_outbox(Settings(outbox=postgres_url))) as outbox:
        outbox.status()
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "INSERT INTO meter_lib.migrations (number, name) VALUES (%s, 'x')", (LATEST + 1,)
        )
    with (
        contextlib.closing(open_outbox(Settings(outbox=postgres_url))) as outbox,
        pytest.raises(SchemaTooNew, match="upgrade meter-lib"),
    ):
        outbox.status()


def test_a_database_that_cannot_hold_every_name_is_refused(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """An encoding other than UTF-8 is found out before the first event, not with it."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS latin")
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(MeterError, match="the database is in LATIN1"):
        open_outbox(Settings(outbox=postgres_server.url("latin"))).status()
