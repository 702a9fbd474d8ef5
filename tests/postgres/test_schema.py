"""How the tables come to be on a server, and who may use them."""

from __future__ import annotations

import contextlib
import re
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from meter_lib import MeterClient, MeterError, OutboxMissing, SchemaTooNew, Settings
from meter_lib._postgres import PostgresOutbox
from meter_lib.opening import open_outbox
from meter_lib.outbox import Account, Burial, Link, Selector, Settlement, Unanswered
from meter_lib.usage import usage_event
from meter_migrations.postgres import LATEST

if TYPE_CHECKING:
    from tests.postgres.server import PostgresServer

DOCS = (Path(__file__).parents[2] / "docs" / "postgres.md").read_text(encoding="utf-8")


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


def test_programs_and_workers_need_no_more_than_the_documented_rights(postgres_url: str) -> None:
    """After the GRANTs of docs/postgres.md a role can do all that an outbox is asked for."""
    with contextlib.closing(open_outbox(Settings(outbox=postgres_url))) as outbox:
        outbox.status()
    grants = [line.strip() for line in DOCS.splitlines() if line.startswith("    GRANT ")]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS metering_app")
        connection.execute("CREATE ROLE metering_app LOGIN")
        for grant in grants:
            connection.execute(grant.encode())
    url = postgres_url.replace("//meter:", "//metering_app:")
    outbox = PostgresOutbox(url, max_bytes=2**22)
    with contextlib.closing(outbox):
        outbox.append(
            [usage_event("t", "d", "m", n, idempotency_key=f"{n}") for n in (1, 2)], now=1
        )
        assert outbox.try_hold()
        first, second = outbox.due(now=1, limit=9, max_bytes=2**20)
        request = Unanswered("r", '"c"', [first])
        outbox.begin([request])
        outbox.set_account("t", Account('"c"', 1, 0))
        outbox.set_link(Link("events"))
        outbox.queue([second], until=2)
        outbox.settle(
            Settlement(
                delivered=[first], answered=request, buried=[Burial(second, "rejected", "no")]
            ),
            now=1,
        )
        [letter] = outbox.dead_letters(Selector())
        assert (outbox.replay([letter.seq], now=1), outbox.purge([letter.seq])) == (1, 0)
        assert outbox.import_letters([], now=1) == []
        status = outbox.status()
        assert (status.accepted, status.pending, status.workers) == (2, 1, 1)
        assert outbox.inspect(seconds=10).pending == 1
        outbox.release()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY metering_app")
        connection.execute("DROP ROLE metering_app")


def test_the_documented_transaction_works(
    postgres_url: str, connection: psycopg.Connection[tuple[int, ...]]
) -> None:
    """The example of docs/postgres.md records usage together with a program's own data."""
    [example] = re.findall(r"^    client = .*\n(?:^    .*\n)+", DOCS, re.MULTILINE)
    connection.execute("DROP TABLE IF EXISTS orders")
    connection.execute("CREATE TABLE orders (number integer, printed boolean)")
    connection.execute("INSERT INTO orders VALUES (7, false)")
    connection.commit()
    program = textwrap.dedent(example).replace("postgresql://app@db.example/metering", postgres_url)
    names = {"psycopg": psycopg, "MeterClient": MeterClient}
    exec(program, names)  # noqa: S102  # our own page
    names["client"].close()
    assert connection.execute("SELECT number FROM orders WHERE printed").fetchall() == [(7,)]
    assert connection.execute("SELECT payload FROM meter_lib.events").rowcount == 1
