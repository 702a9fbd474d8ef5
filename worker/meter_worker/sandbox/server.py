"""The sandbox as a Python object: started and stopped, looked into, and told to misbehave."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from meter_worker.sandbox.backend import LocalBackend, Terms
from meter_worker.sandbox.fault_board import fault_from
from meter_worker.sandbox.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Self

    from meter_worker.sandbox.request_log import LoggedRequest
    from meter_worker.sandbox.store import StoredRecord

IDLE_SECONDS = 75.0
"""How long a connection may be idle: the proxy's default."""


class Sandbox:
    """A local backend with an events API, an accounts API, and faults on demand.

    It listens between `start` and `stop` (or within `with`), on `host` only; port 0 takes a free
    port, and keeps it over a stop. What it stored, logged and was told survives a stop. With an
    `api_key`, the portal's form of the accounts API wants it. Thread-safe.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        topic: str = "usage-events",
        api_key: str | None = None,
        unknown_tenants: Iterable[str] = (),
        *,
        accounts_as_list: bool = False,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise ValueError(f"port is 0 to 65535, not {port}")
        self._unknown_tenants = set(unknown_tenants)
        self._host = host
        self._port = port
        self._idle_seconds = idle_seconds
        self._backend = LocalBackend(Terms(topic, api_key, self._unknown_tenants, accounts_as_list))
        self._lock = threading.Lock()
        self._listener: Listener | None = None

    def start(self) -> Self:
        """Listen; on return connections are taken. Started already, it just goes on.

        Raises OSError, which names the port, where the port cannot be had.
        """
        with self._lock:
            if self._listener is None:
                self._listener = self._listening()
                self._port = self._listener.port
                self._listener.start()
        return self

    def _listening(self) -> Listener:
        try:
            return Listener(self._host, self._port, self._backend, idle_seconds=self._idle_seconds)
        except OSError as error:
            message = f"cannot listen on port {self._port} of {self._host}: {error.strerror}"
            raise OSError(error.errno, message) from error

    def stop(self) -> None:
        """Refuse connections and cut those that are open, within 2 seconds; stopped, do nothing."""
        with self._lock:
            if self._listener is not None:
                self._listener.stop()
                self._listener = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port, 0 if it is to be a free one and the sandbox was never started."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL of both APIs."""
        return f"http://{self._host}:{self._port}"

    @property
    def unknown_tenants(self) -> set[str]:
        """Tenants without an account; the set may be changed at any time."""
        return self._unknown_tenants

    @unknown_tenants.setter
    def unknown_tenants(self, tenants: Iterable[str]) -> None:
        wanted = set(tenants)
        self._unknown_tenants.clear()
        self._unknown_tenants.update(wanted)

    @property
    def records(self) -> list[StoredRecord]:
        """The stored records, copies included, in the order they were stored."""
        return self._backend.store.records()

    @property
    def count(self) -> int:
        """How many records are stored, copies included."""
        return self._backend.store.totals[0]

    @property
    def distinct(self) -> int:
        """How many different idempotency keys the stored records have."""
        return self._backend.store.totals[1]

    @property
    def duplicates(self) -> int:
        """How many records are stored beyond the first of each idempotency key."""
        count, distinct = self._backend.store.totals
        return count - distinct

    @property
    def keys(self) -> dict[str, int]:
        """How many times each idempotency key is stored."""
        return self._backend.store.times_by_key

    @property
    def requests(self) -> list[LoggedRequest]:
        """The last 10,000 requests, oldest first, without those below /sandbox/."""
        return self._backend.log.requests()

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The standing faults as /sandbox/faults shows them."""
        return self._backend.faults.as_json()

    def clear(self) -> None:
        """Empty the store. Offsets go on where they were."""
        self._backend.store.clear()

    def fault(self, fault: str, **members: Any) -> None:
        """Let a fault stand behind those that stand already.

        Takes what `PUT /sandbox/faults` takes for one fault. Raises ValueError that says which
        member is wrong; nothing has changed then.
        """
        self._backend.faults.add(fault_from({"fault": fault, **members}))

    def heal(self) -> None:
        """Let no fault stand any more."""
        self._backend.faults.replace([])
