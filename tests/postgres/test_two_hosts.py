"""Two hosts deliver from one server, and one of them is cut off in the middle of it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from meter_lib import MeterClient
from meter_worker.sandbox import Sandbox
from tests.postgres.hosts import HUB, Network, require_namespaces
from tests.promises.delivering import Device, eventually, first_arrivals

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

TENANTS = "abcdefgh"


@pytest.fixture
def network() -> Generator[Network]:
    """A hub and the hosts `one` and `two`; this test is on the hub."""
    require_namespaces()
    network = Network("one", "two")
    try:
        with network.inside("hub"):
            yield network
    finally:
        network.remove()


@pytest.fixture
def fleet(tmp_path: Path, network: Network) -> Generator[Device]:
    """A server and a backend on the hub; no worker is left."""
    del network
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    from tests.postgres.server import PostgresServer  # noqa: PLC0415  # of an extra

    server = PostgresServer(HUB)
    with contextlib.ExitStack() as stack:
        stack.callback(server.remove)
        sandbox = stack.enter_context(Sandbox(host=HUB))
        made = Device(tmp_path, sandbox, outbox=server.url(address=HUB))
        stack.callback(made.end)
        yield made


def test_a_host_that_is_cut_off_loses_and_swaps_nothing(network: Network, fleet: Device) -> None:
    """With requests under way its wire is pulled, and put back when others have its streams."""
    for host in ("one", "two"):
        with network.inside(host):
            fleet.start_worker(batch_size=10)
    eventually(lambda: fleet.status.workers == 2)
    fleet.sandbox.fault("slow", seconds=0.1)
    stopping = threading.Event()
    posted: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}

    def record() -> None:
        with MeterClient(settings=fleet.settings()) as client:
            while not stopping.wait(0.05):
                for tenant, keys in posted.items():
                    keys.append(f"{tenant}{len(keys)}")
                    client.post(tenant, "d", "m", 1, idempotency_key=keys[-1])

    recording = threading.Thread(target=record)
    recording.start()
    try:
        eventually(lambda: fleet.sandbox.count > 100)
        with fleet.opened() as outbox:
            eventually(outbox.unanswered)
        network.cut_off("one")
        # What it holds is free once the server misses it; no clock of ours says so.
        eventually(lambda: fleet.status.workers == 1, seconds=60)
        cut_off_at = len(posted["a"])
        eventually(lambda: all(f"{tenant}{cut_off_at}" in arrived(fleet) for tenant in TENANTS))
        network.connect("one")
        eventually(lambda: fleet.status.workers == 2, seconds=60)
    finally:
        stopping.set()
        recording.join()
    fleet.drained()

    everything = [key for keys in posted.values() for key in keys]
    assert arrived(fleet) == set(everything)
    assert all(seqs == sorted(seqs) for seqs in first_arrivals(fleet.sandbox.records).values())
    status = fleet.status
    assert (status.accepted, status.delivered) == (len(everything), len(everything))
    with fleet.opened() as outbox, outbox.audit(progress=lambda *_: None) as audit:
        assert (audit.problems, audit.delivered.units) == ([], len(everything))


def arrived(fleet: Device) -> set[str]:
    """The idempotency keys that arrived."""
    return {record.value["idempotency_key"] for record in fleet.sandbox.records}
