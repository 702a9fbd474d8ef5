"""The outbox on a server against the same model in plain Python as the one in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, run_state_machine_as_test

from meter_lib._postgres import PostgresOutbox
from tests.integration.test_outbox_state_machine import NOON, Model, OutboxMachine

if TYPE_CHECKING:
    from meter_lib.outbox import Unanswered
    from tests.postgres.server import PostgresServer


class ServerMachine(OutboxMachine):
    """The same rules and invariants, over a server."""

    server: ClassVar[PostgresServer]

    @initialize()
    def make(self) -> None:
        """Begin with an empty outbox."""
        self.server.clear()
        self.dropped: list[PostgresOutbox] = []
        self.outbox = self.opened()
        self.model = Model()
        self.now = NOON
        self.flights: dict[str, tuple[Unanswered, int]] = {}
        self.requests = 0

    def opened(self) -> PostgresOutbox:
        """Return another object for the one outbox."""
        return PostgresOutbox(self.server.url(), max_bytes=64 * 2**20, durability="normal")

    def teardown(self) -> None:
        """Leave nothing open."""
        for outbox in (*self.dropped, self.outbox):
            outbox.close()


def test_whatever_is_done_in_whatever_order_is_as_in_the_model(
    postgres_server: PostgresServer,
) -> None:
    """Posts, requests, answers, operators and crashes leave what the model says."""
    ServerMachine.server = postgres_server
    run_state_machine_as_test(
        ServerMachine,
        settings=settings(
            max_examples=4,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
