"""Which customer pays for a tenant: asked of the accounts API, kept in the outbox."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from meter_lib.outbox import Account
from meter_worker.backend import AccountFound, AccountUnknown, Interrupted, Unavailable

if TYPE_CHECKING:
    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery
    from meter_worker.backend import AccountsApi
    from meter_worker.links import LinkKeeper
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["Customer", "CustomerAccounts", "NoAnswer", "NoCustomer", "WhoPays"]

_logger = logging.getLogger("meter_worker")


class Customer(NamedTuple):
    """The tenant's customer."""

    customer_id: str
    """JSON text of the id."""


class NoCustomer(NamedTuple):
    """The accounts API says that there is no such account."""

    misses: int
    """How often in a row it has said so."""
    detail: str
    until: int
    """When it is asked again (milliseconds, steady time)."""


class NoAnswer(NamedTuple):
    """The accounts API is not to be asked now, or said nothing of use."""

    until: int
    """When it may be asked again (milliseconds, steady time)."""


WhoPays: TypeAlias = "Customer | NoCustomer | NoAnswer | Interrupted"


class CustomerAccounts:
    """The accounts as last answered, asked again when older than `ttl_seconds`."""

    def __init__(
        self,
        outbox: Delivery,
        api: AccountsApi,
        link: LinkKeeper,
        policy: RetryPolicy,
        *,
        ttl_seconds: float,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._api = api
        self._link = link
        self._policy = policy
        self._ttl = ttl_seconds * 1000
        self._clock = clock
        # Tenants without an account. Lost with the process: then each is asked once more.
        self._ask_again_at: dict[str, int] = {}

    def who_pays(self, tenant_id: str) -> WhoPays:
        """Return the tenant's customer, from the outbox if fresh, else by asking once."""
        now = self._clock.steady()
        known = self._outbox.account(tenant_id)
        # An answer from the future was written by a clock that has been set back since.
        if known and known.customer_id and 0 <= now - known.answered_at <= self._ttl:
            return Customer(known.customer_id)
        paused_until = self._link.paused_until(now)
        if paused_until is not None:
            return NoAnswer(paused_until)
        # Whatever asks: each answer that is counted has had its wait.
        ask_again_at = self._ask_again_at.get(tenant_id, now)
        if now < ask_again_at:
            return NoAnswer(ask_again_at)
        answer = self._api.look_up(tenant_id)
        now = self._clock.steady()
        match answer:
            case AccountFound(customer_id):
                self._link.succeeded(now)
                self._outbox.set_account(tenant_id, Account(customer_id, now, 0))
                self._ask_again_at.pop(tenant_id, None)
                return Customer(customer_id)
            case AccountUnknown(detail):
                self._link.succeeded(now)
                misses = 1 + (known.misses if known else 0)
                self._outbox.set_account(tenant_id, Account(None, now, misses))
                until = now + round(self._policy.wait_seconds(misses) * 1000)
                self._ask_again_at[tenant_id] = until
                _logger.warning(
                    "tenant %r has no customer account, answer %d in a row: %s",
                    tenant_id,
                    misses,
                    detail,
                )
                return NoCustomer(misses, detail, until)
            case Unavailable():
                # Behind the tenants that were not asked about, should it be this one's fault.
                return NoAnswer(self._link.failed(answer, now) + 1)
            case Interrupted():
                return answer

    def start_over(self, tenant_id: str) -> None:
        """Forget how often the tenant's account was missed, once its events have been buried."""
        self._outbox.set_account(tenant_id, Account(None, self._clock.steady(), 0))
        self._ask_again_at.pop(tenant_id, None)
