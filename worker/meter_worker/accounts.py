"""Which customer pays for a tenant: asked of the accounts API, kept in the outbox."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from meter_lib.outbox import Account
from meter_worker.backend import AccountFound, AccountUnknown, Interrupted, Unavailable
from meter_worker.exhaustive import assert_never
from meter_worker.log_events import is_news

if TYPE_CHECKING:
    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery
    from meter_worker.backend import AccountAnswer
    from meter_worker.links import LinkKeeper
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["AskNow", "AskedLater", "Customer", "CustomerAccounts", "Unknown", "WhoPays"]

_logger = logging.getLogger("meter_worker")


class Customer(NamedTuple):
    """The tenant's customer."""

    customer_id: str
    """JSON text of the id."""


class AskNow(NamedTuple):
    """The accounts API is to be asked."""


class AskedLater(NamedTuple):
    """The accounts API is not to be asked now: it failed, for this tenant or for any."""

    until: int
    """When it may be asked again (milliseconds, steady time)."""


class Unknown(NamedTuple):
    """The accounts API said that there is no such account."""

    misses: int
    """How often in a row it has said so."""
    detail: str
    until: int
    """When it is asked again (milliseconds, steady time)."""


WhoPays: TypeAlias = "Customer | AskNow | AskedLater | Unknown"


class CustomerAccounts:
    """The accounts as last answered, asked again when older than `ttl_seconds`."""

    def __init__(
        self,
        outbox: Delivery,
        link: LinkKeeper,
        policy: RetryPolicy,
        *,
        ttl_seconds: float,
        longest_wait_seconds: float,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._link = link
        self._policy = policy
        self._ttl = round(ttl_seconds * 1000)
        self._longest_wait = round(longest_wait_seconds * 1000)
        self._clock = clock
        # What the accounts API said of tenants without one, in its own words.
        self._details: dict[str, str] = {}
        # Tenants whose look-up failed: each behind those that were not asked about since.
        self._failed: dict[str, int] = {}

    def who_pays(self, tenant_id: str) -> WhoPays:
        """Return the tenant's customer as last answered, or what to do about not knowing."""
        now = self._clock.steady()
        known = self._outbox.account(tenant_id)
        # An answer from the future was written by a clock that has been set back since.
        if known and known.customer_id and 0 <= now - known.answered_at <= self._ttl:
            return Customer(known.customer_id)
        until = known.ask_again_at if known else None
        # Longer than any wait we set: the clock was set back between two processes.
        if known and until is not None and now < until <= now + self._longest_wait:
            return Unknown(known.misses, self._details.get(tenant_id, "no account"), until)
        paused_until = self._link.paused_until(now)
        return AskNow() if paused_until is None else AskedLater(paused_until)

    def turn(self, tenant_id: str) -> int:
        """Sort the tenants to be asked about: those whose look-up has failed least come first."""
        return self._failed.get(tenant_id, 0)

    @property
    def outage(self) -> int:
        """Which outage of the accounts API it is: note it with each question."""
        return self._link.outage

    def try_now(self, now: int) -> int | None:
        """End the pause of the accounts API, if it is our own; return until when it stays."""
        return self._link.try_now(now)

    def answered(self, tenant_id: str, answer: AccountAnswer, *, sent_in: int) -> None:
        """Write down what the accounts API said of the tenant."""
        now = self._clock.steady()
        known = self._outbox.account(tenant_id)
        match answer:
            case AccountFound(customer_id):
                self._link.succeeded(now)
                self._failed.pop(tenant_id, None)
                self._details.pop(tenant_id, None)
                self._outbox.set_account(tenant_id, Account(customer_id, now, 0))
            case AccountUnknown(detail):
                self._link.succeeded(now)
                self._failed.pop(tenant_id, None)
                self._details[tenant_id] = detail
                misses = 1 + (known.misses if known else 0)
                until = now + max(1, round(self._policy.wait_seconds(misses) * 1000))
                self._outbox.set_account(tenant_id, Account(None, now, misses, until))
                _logger.log(
                    logging.WARNING if is_news(misses) else logging.DEBUG,
                    "tenant %r has no customer account, answer %d in a row: %s",
                    tenant_id,
                    misses,
                    detail,
                    extra={
                        "event": "customer_unknown",
                        "tenant_id": tenant_id,
                        "misses": misses,
                        "detail": detail,
                    },
                )
            case Unavailable():
                self._failed[tenant_id] = self._failed.get(tenant_id, 0) + 1
                self._link.failed(answer, now, sent_in=sent_in)
            case Interrupted():
                pass
            case _:
                assert_never(answer)

    def start_over(self, tenant_id: str) -> None:
        """Forget how often the tenant's account was missed, once its events have been buried."""
        known = self._outbox.account(tenant_id)
        if known is not None:
            self._outbox.set_account(tenant_id, known._replace(misses=0))
