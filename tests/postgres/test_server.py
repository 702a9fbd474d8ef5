"""What is between a program and its outbox on a server: networks, poolers, forks, extras."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from meter_lib import (
    InvalidSetting,
    MeterClient,
    OutboxFull,
    OutboxUnavailable,
    Settings,
    post_meter_usage,
)
from meter_lib._postgres import PostgresOutbox
from meter_lib.opening import open_outbox
from meter_lib.outbox import Settlement
from meter_worker import BackgroundFlusher
from tests.postgres.server import run_as
from tests.promises.delivering import eventually, killed

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.postgres.server import PostgresServer
    from tests.promises.delivering import Device

NOON = 1_760_000_000_000


def test_a_post_wakes_the_worker(fleet: Device) -> None:
    """However seldom a worker looks for itself, what is posted while it is idle goes at once."""
    fleet.start_worker(poll_interval=600)
    eventually(lambda: fleet.status.workers == 1)
    fleet.post("a")
    eventually(lambda: fleet.sandbox.count == 1)
    fleet.drained()
    fleet.post("b")
    eventually(lambda: fleet.sandbox.count == 2)


def test_a_dead_workers_share_is_free_at_once(fleet: Device) -> None:
    """After kill -9 the server, and no clock, says that nobody holds the streams any more."""
    worker = fleet.start_worker()
    eventually(lambda: fleet.status.workers == 1)
    with fleet.opened() as outbox:
        assert outbox.holder() == worker.pid
        killed(worker)
        eventually(outbox.try_hold)


def test_a_program_that_forks_posts_from_both_sides(postgres_url: str) -> None:
    """Parent and child have a connection each; neither's end is the other's."""
    with MeterClient(settings=Settings(outbox=postgres_url)) as client:
        client.post("t", "d", "m", 1)
        child = os.fork()
        if child == 0:
            try:
                client.post("t", "d", "m", 2)
                client.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        client.post("t", "d", "m", 3)
        assert client._outbox.status().accepted == 3


def test_a_connection_that_was_lost_meanwhile_costs_no_post(postgres_url: str) -> None:
    """A server that was restarted between two posts is not noticed by the second.

    Be it of a stream that is new, or in the caller's own transaction.
    """
    with (
        psycopg.connect(postgres_url, autocommit=True) as operator,
        MeterClient(settings=Settings(outbox=postgres_url)) as client,
    ):

        def cut() -> None:
            ours = "FROM pg_stat_activity WHERE application_name = 'meter-lib'"
            operator.execute(f"SELECT pg_terminate_backend(pid) {ours}")
            eventually(lambda: not operator.execute(f"SELECT 1 {ours}").fetchall())

        client.post("t", "d", "m", 1)
        cut()
        assert client.post("t", "d", "m", 2)["status"] == "queued"
        cut()
        assert client.post("t", "d", "new", 3)["status"] == "queued"
        cut()
        with operator.transaction():
            client.post("t", "d", "new", 4, connection=operator)
        cut()
        with operator.transaction():
            client.post("t", "d", "newer", 5, connection=operator)
        assert client._outbox.status().accepted == 5


def test_a_server_that_is_away_refuses_posts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The function returns None, as for a full disk; the password is in no message."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://meter:s3cret@127.0.0.1:{nobody.getsockname()[1]}/metering"
        monkeypatch.setenv("METER_OUTBOX", url)
        assert post_meter_usage("t", "d", "page.processed.basic", 1) is None
    assert "usage was not recorded: postgresql://***@127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@host:port/db",
        "postgresql://u:s3cret%@h",
        "postgresql://u:x@s3cret@h/db",
        "postgresql://u:s3cret/@h",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    """What is wrong with a URL is said before anything is started, and without its secret."""
    with pytest.raises(InvalidSetting, match="must be a URL like") as refused:
        open_outbox(Settings(outbox=url))
    assert "s3cret" not in str(refused.value)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)


def test_a_stricter_default_of_the_server_refuses_no_post(postgres_url: str) -> None:
    """Where transactions are serializable unless they say otherwise, ours say so."""
    strict = f"{postgres_url}?options=-c%20default_transaction_isolation%3Dserializable"
    clients = [MeterClient(settings=Settings(outbox=strict)) for _ in range(4)]
    together = threading.Barrier(len(clients))
    statuses: list[str] = []

    def post(client: MeterClient) -> None:
        together.wait()
        for number in range(10):
            receipt = client.post("t", f"d{number}", "m", 1, idempotency_key=f"{number}")
            statuses.append(receipt["status"])

    posting = [threading.Thread(target=post, args=(client,)) for client in clients]
    for thread in posting:
        thread.start()
    for thread in posting:
        thread.join()
    for client in clients:
        client.close()
    assert (statuses.count("queued"), statuses.count("duplicate")) == (10, 30)


def test_settings_that_a_server_has_not_are_refused() -> None:
    """Where dropping the oldest is asked for, it is said that it is not to be had."""
    with pytest.raises(InvalidSetting, match="METER_WHEN_FULL"):
        open_outbox(Settings(outbox="postgresql://h/db", when_full="drop-oldest"))


def test_without_the_extra_it_is_named() -> None:
    """Whoever names a server without the driver is told what to install."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "import meter_lib\n"
        "meter_lib.MeterClient('postgresql://h/db')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "pip install 'meter-lib[postgres]'" in ended.stderr.splitlines()[-1]


def test_the_outbox_never_grows_past_its_limit(postgres_url: str) -> None:
    """At METER_MAX_BYTES posts are refused; what is delivered makes room again."""
    settings = Settings(outbox=postgres_url, max_bytes=4 * 2**20)
    event = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 1}
    large = event | {"metadata": {f"k{number}": "x" * 8_000 for number in range(7)}}
    with MeterClient(settings=settings) as client:
        recorded = 70
        client.post_many([large] * recorded)
        with pytest.raises(OutboxFull, match="METER_MAX_BYTES"):
            client.post_many([large] * 10)
        outbox = client._outbox
        first = outbox.due(now=NOON, limit=1, max_bytes=1)
        outbox.settle(Settlement(delivered=first), now=NOON)
        client.post_many([large])
        assert outbox.inspect(seconds=10).accepted == recorded + 1


@pytest.fixture
def pooled_url(postgres_url: str, postgres_server: PostgresServer) -> Generator[str]:
    """The database through a pooler that gives a connection to each transaction."""
    del postgres_url  # there is no outbox in it
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer here (on Debian: apt-get install pgbouncer)")
    folder = postgres_server.folder_for("pgbouncer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = os.path.join(folder, "pgbouncer.ini")
    with open(configuration, "w", encoding="utf-8") as file:
        file.write(
            "[databases]\n"
            f"metering = host=127.0.0.1 port={postgres_server.port} user=meter\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
        )
    pooler = subprocess.Popen([program, "-q", configuration], **run_as())
    url = f"postgresql://meter:s3cret@127.0.0.1:{port}/metering"
    deadline = time.monotonic() + 10
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            break
    yield url
    pooler.kill()
    pooler.wait()


def test_posts_go_through_a_pooler_in_transaction_mode(pooled_url: str, postgres_url: str) -> None:
    """Many programs share few connections of the server, and each event has its receipt."""
    clients = [MeterClient(settings=Settings(outbox=pooled_url)) for _ in range(6)]
    for number in range(10):
        for client in clients:
            client.post("t", "d", "m", number)
    with psycopg.connect(pooled_url) as connection:
        clients[0].post("t", "d", "m", 10, connection=connection)
    outbox = PostgresOutbox(postgres_url, max_bytes=2**22)
    assert outbox.status().accepted == 61
    outbox.close()
    for client in clients:
        client.close()


def test_a_worker_behind_a_pooler_says_why_it_cannot_deliver(pooled_url: str) -> None:
    """Claims belong to a connection: a worker that cannot have its own holds nothing."""
    outbox = PostgresOutbox(pooled_url, max_bytes=2**22)
    with pytest.raises(OutboxUnavailable, match="needs the server's own address"):
        outbox.try_hold()
    assert outbox.holder() is None
    outbox.close()


def test_the_background_flusher_delivers_from_a_server(fleet: Device) -> None:
    """The flusher in a thread of the program works on a server's outbox as on a file."""
    fleet.post("a", "b", "c")
    with BackgroundFlusher(settings=fleet.settings()) as flusher:
        assert flusher.flush(30)
    assert fleet.sandbox.distinct == 3
