"""The port to the network: what is sent, and the closed set of what can become of it.

An adapter answers every attempt with exactly one outcome; nobody else looks at a
status code or a transport error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AccountAnswer",
    "AccountFound",
    "AccountUnknown",
    "AccountsApi",
    "Ambiguous",
    "Answered",
    "Backend",
    "Delivered",
    "Interrupted",
    "Outcome",
    "Refused",
    "Rejected",
    "Request",
    "Retriable",
    "Unavailable",
    "Undecided",
    "Verdict",
]


class Request(NamedTuple):
    """Events of one tenant and device, ready to be sent."""

    tenant_id: str
    device_id: str
    idempotency_key: str
    """The same for the same records."""
    records: Sequence[str]
    """JSON text of each record, in order."""


# -- what the backend says of one record ------------------------------------------------


class Delivered(NamedTuple):
    """It is stored, by the backend's own word."""


class Retriable(NamedTuple):
    """It is not stored; the backend may answer the same record otherwise next time."""

    detail: str


class Rejected(NamedTuple):
    """It is not stored; the backend would answer the same record the same way again."""

    reason: str
    """The slug of the dead letter that it may become."""
    detail: str


class Undecided(NamedTuple):
    """Nothing was said of it: it stays as it was."""


Verdict: TypeAlias = "Delivered | Retriable | Rejected | Undecided"


# -- what became of a request -----------------------------------------------------------


class Unavailable(NamedTuple):
    """An outage: no event is to blame. Whether anything was stored is unknown."""

    detail: str
    retry_after_seconds: float | None = None
    timed_out: bool = False
    wants_an_operator: bool = False
    """True where waiting alone will hardly help: a redirect, missing rights, a wrong URL."""


class Answered(NamedTuple):
    """The backend said of each record what became of it."""

    verdicts: Sequence[Verdict]
    """One a record, in order."""
    outage: Unavailable | None = None
    """Set where the answer also says that more would be in vain for now."""


class Refused(NamedTuple):
    """The request was refused as a whole, and nothing of it was stored."""

    reason: str
    """`rejected` or `too_large`."""
    detail: str


class Ambiguous(NamedTuple):
    """Some of it is stored, and nobody can tell which records: only of lone ones it can be told."""

    detail: str
    lasting: bool = False
    """True where every request of several records would be answered like that."""


class Interrupted(NamedTuple):
    """We broke it off ourselves. Whether anything was stored is unknown."""


Outcome: TypeAlias = "Answered | Refused | Ambiguous | Unavailable | Interrupted"


class Backend(Protocol):
    """Where events are delivered to."""

    def deliver(self, request: Request) -> Outcome:
        """Send the request once and return what became of it; raise nothing.

        May be called from several threads at once.
        """
        ...

    def interrupt(self) -> None:
        """Break off what is under way, from any thread, and every further `deliver`."""
        ...


# -- customer accounts ------------------------------------------------------------------


class AccountFound(NamedTuple):
    """The tenant's customer account."""

    customer_id: str
    """JSON text of the id: a string or a number."""


class AccountUnknown(NamedTuple):
    """The accounts API itself answered that there is no such account."""

    detail: str


AccountAnswer: TypeAlias = "AccountFound | AccountUnknown | Unavailable | Interrupted"


class AccountsApi(Protocol):
    """Where customer accounts are asked for."""

    def look_up(self, tenant_id: str) -> AccountAnswer:
        """Ask once for the tenant's account; raise nothing."""
        ...

    def interrupt(self) -> None:
        """Break off what is under way, from any thread, and every further question."""
        ...
