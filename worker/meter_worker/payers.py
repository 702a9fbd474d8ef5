"""Whose events can be sent, for whom the accounts API is asked, and whom it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meter_lib.outbox import Burial, Settlement
from meter_worker.accounts import AskedLater, AskNow, Customer, Unknown

if TYPE_CHECKING:
    from meter_lib.outbox import Delivery, DueEvent
    from meter_worker.accounts import CustomerAccounts, WhoPays
    from meter_worker.backend import AccountAnswer
    from meter_worker.window import Window

__all__ = ["Payers", "Question"]


class Question(NamedTuple):
    """A tenant whose account is being asked for."""

    tenant_id: str
    outage: int
    """Which outage of the accounts API it was when it was asked."""


class Payers:
    """The customers of the tenants in view, as far as they are known."""

    def __init__(self, outbox: Delivery, accounts: CustomerAccounts, *, max_attempts: int) -> None:
        self._outbox = outbox
        self._accounts = accounts
        self._max_attempts = max_attempts
        # As of the last `refresh`; many events are of few tenants.
        self._known: dict[str, WhoPays] = {}
        # Tenants without an account: up to which seq their events have been given up.
        self._given_up: dict[str, tuple[int, Unknown]] = {}

    def refresh(self) -> None:
        """Look again at what is known, as time passes and answers come in."""
        self._known.clear()

    def try_now(self, now: int) -> int | None:
        """End the pause of the accounts API, if it is our own; return until when it stays."""
        return self._accounts.try_now(now)

    def of(self, tenant_id: str) -> WhoPays:
        """Return who pays for the tenant."""
        who = self._known.get(tenant_id)
        if who is None:
            who = self._known[tenant_id] = self._accounts.who_pays(tenant_id)
        return who

    def customer_id(self, tenant_id: str) -> str | None:
        """Return the tenant's customer id as JSON text, or None where it is not known."""
        who = self.of(tenant_id)
        return who.customer_id if isinstance(who, Customer) else None

    def customer_of(self, event: DueEvent) -> str | None:
        """Return the customer that the event is sent with: always that of its first attempt."""
        return event.customer_id or self.customer_id(event.tenant_id)

    def to_ask(self) -> Question | None:
        """Return the tenant to ask about now, or None; the one that was asked least in vain."""
        tenants = [tenant for tenant, who in self._known.items() if isinstance(who, AskNow)]
        if not tenants:
            return None
        return Question(min(tenants, key=self._accounts.turn), self._accounts.outage)

    def answered(self, question: Question, answer: AccountAnswer) -> None:
        """Write down what the accounts API said."""
        self._accounts.answered(question.tenant_id, answer, sent_in=question.outage)
        # Whoever is left of them has been replayed, or waits as often again.
        self._given_up.pop(question.tenant_id, None)
        self._known.pop(question.tenant_id, None)
        who = self.of(question.tenant_id)
        if isinstance(who, Unknown) and who.misses >= self._max_attempts:
            # All that it has posted so far; what it posts from now on begins with a clean slate.
            self._given_up[question.tenant_id] = self._outbox.accepted(), who
            self._accounts.start_over(question.tenant_id)

    def next_question_at(self, now: int) -> int | None:
        """Return when the accounts API may be asked again, if somebody waits for that."""
        return min(
            (
                who.until
                for who in self._known.values()
                if isinstance(who, AskedLater) and who.until > now
            ),
            default=None,
        )

    def set_unknown_aside(self, window: Window) -> Settlement | None:
        """Put the events in view of unknown tenants off until their account is asked for again.

        Returns the burial of those that have been given up, if any; they are out of view too.
        """
        unknown = {
            tenant_id: who for tenant_id, who in self._known.items() if isinstance(who, Unknown)
        }
        events = window.take_all(
            lambda event: event.tenant_id in unknown and event.customer_id is None
        )
        burials = [burial for event in events if (burial := self._burial_of(event))]
        given_up = {burial.event.seq for burial in burials}
        for tenant_id, who in unknown.items():
            waiting = [
                event
                for event in events
                if event.tenant_id == tenant_id and event.seq not in given_up
            ]
            if waiting:
                self._outbox.queue(waiting, until=who.until)
        return Settlement(buried=burials) if burials else None

    def _burial_of(self, event: DueEvent) -> Burial | None:
        """Return the burial of an event whose tenant has been given up, or None."""
        last_seq, who = self._given_up.get(event.tenant_id, (0, None))
        if who is None or event.seq > last_seq:
            return None
        return Burial(event, "customer_not_found", who.detail, answers=who.misses)
