"""The port of the outbox against a model in plain Python, whatever is done in whatever order."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import KeyConflict
from meter_lib.outbox import Burial, Deferral, DueEvent, Selector, Settlement, Unanswered
from meter_lib.usage import usage_event

NOON = 1_760_000_000_000
STEP = 1_000
STREAMS = [("t", "a"), ("t", "b"), ("u", "a")]

streams = st.sampled_from(STREAMS)
callers_keys = st.sampled_from([None, "k1", "k2", "k3"])
units = st.integers(min_value=0, max_value=2)
customers = st.sampled_from(['"c-1"', "7"])
# Which of those that are at hand; as many of them as there are.
choices = st.lists(st.integers(min_value=0, max_value=7), min_size=1, max_size=4)
one_verdict = st.sampled_from(["delivered", "deferred", "refused", "alone", "buried", "open"])
one_for_all = one_verdict.map(lambda verdict: [verdict] * 4)
waits = st.sampled_from([0, STEP, 5 * STEP])


@dataclass
class Modelled:
    """An event as it has to be."""

    seq: int
    key: str
    stream: tuple[str, str]
    units: int
    payload: str
    state: str = "fresh"
    attempts: int = 0
    customer: str | None = None
    lone_refusal: int | None = None


@dataclass
class Model:
    """All that an outbox has to know."""

    events: dict[int, Modelled] = field(default_factory=dict)
    known_keys: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    held_until: dict[tuple[str, str], int] = field(default_factory=dict)
    sent: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    accepted: int = 0
    delivered: int = 0
    removed: int = 0
    refusals: int = 0
    proven_to: int = 0

    def of_state(self, *states: str) -> list[Modelled]:
        """The events in these states, oldest first."""
        return [event for _, event in sorted(self.events.items()) if event.state in states]

    def free_streams(self) -> None:
        """A stream is held for as long as one of its events waits."""
        waiting = {event.stream for event in self.of_state("deferred")}
        self.held_until = {s: at for s, at in self.held_until.items() if s in waiting}

    def refuse_alone(self, event: Modelled) -> None:
        """Give a lone refusal its number, unless it has one."""
        self.refusals += 1
        event.lone_refusal = event.lone_refusal or self.refusals


class OutboxMachine(RuleBasedStateMachine):
    """Posts, requests, answers, operators and ends of the process, in any order."""

    @initialize()
    def make(self) -> None:
        """Begin with an empty outbox."""
        self.folder = tempfile.TemporaryDirectory()
        self.dropped: list[SqliteOutbox] = []
        self.outbox = self.opened()
        self.model = Model()
        self.now = NOON
        # Requests under way, as the flusher knows them, with what they would prove.
        self.flights: dict[str, tuple[Unanswered, int]] = {}
        self.requests = 0

    def opened(self) -> SqliteOutbox:
        """Return another object for the one outbox."""
        path = Path(self.folder.name) / "outbox.db"
        return SqliteOutbox(str(path), max_bytes=64 * 2**20, durability="normal")

    def teardown(self) -> None:
        """Leave nothing open."""
        for outbox in (*self.dropped, self.outbox):
            outbox.close()
        self.folder.cleanup()

    # -- posts ------------------------------------------------------------------------

    @rule(posts=st.lists(st.tuples(streams, units, callers_keys), min_size=1, max_size=4))
    def append(self, posts: list[tuple[tuple[str, str], int, str | None]]) -> None:
        """Record a few events in one commit: all of them or, with a conflict, none."""
        events = [
            usage_event(tenant, device, "m", number, idempotency_key=key)
            for (tenant, device), number, key in posts
        ]
        known = dict(self.model.known_keys)
        new: list[int] = []
        conflict = False
        for index, (stream, number, key) in enumerate(posts):
            if key is not None and key in known:
                conflict |= known[key] != (stream, number)
            else:
                new.append(index)
                if key is not None:
                    known[key] = (stream, number)
        try:
            receipts = self.outbox.append(events, now=self.now)
        except KeyConflict:
            assert conflict
            return
        assert not conflict
        assert [index for index, r in enumerate(receipts) if r["status"] == "queued"] == new
        for index in new:
            stream, number, key = posts[index]
            self.model.accepted += 1
            made = receipts[index]["idempotency_key"]
            assert key in (None, made)
            self.model.events[self.model.accepted] = Modelled(
                self.model.accepted, made, stream, number, events[index].payload
            )
        self.model.known_keys = known

    # -- the flusher ------------------------------------------------------------------

    def due(self, after: int = 0, beside: tuple[int, ...] = ()) -> list[DueEvent]:
        """What is due now."""
        return self.outbox.due(
            now=self.now, limit=1_000, max_bytes=2**20, after=after, beside=beside
        )

    def at_hand(self, picks: list[int]) -> list[DueEvent]:
        """Pick some of what may be sent: due events and suspects, those under way left out."""
        busy = {event.seq for sent, _ in self.flights.values() for event in sent.events}
        found = [
            event
            for event in (*self.due(), *self.outbox.suspects(limit=99, proven_only=False))
            if event.seq not in busy and not event.held
        ]
        if not found:
            return []
        picked = {pick % len(found) for pick in picks}
        return [found[pick] for pick in sorted(picked)]

    @rule(picks=choices, customer=customers)
    def begin(self, picks: list[int], customer: str) -> None:
        """Send some of what is at hand."""
        events = sorted(self.at_hand(picks))
        if not events:
            # Of a stream that nobody waits in.
            self.append([(("t", f"d{self.requests}"), 1, None)] * 3)
            events = sorted(self.at_hand(picks))
        self.requests += 1
        sent = Unanswered(f"request {self.requests}", customer, events)
        proves = self.outbox.begin([sent])
        assert proves == self.model.refusals
        self.flights[sent.idempotency_key] = sent, proves
        self.model.sent[sent.idempotency_key] = customer, [event.seq for event in events]

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(min_value=0, max_value=7))
    def halve(self, which: int) -> None:
        """Send a request on in two parts, in the place of the whole."""
        key = sorted(self.flights)[which % len(self.flights)]
        whole, _ = self.flights.pop(key)
        middle = len(whole.events) // 2
        halves = [
            Unanswered(f"{key}.{number}", whole.customer_id, part)
            for number, part in enumerate((whole.events[:middle], whole.events[middle:]))
            if part
        ]
        proves = self.outbox.begin(halves, forget=[key])
        del self.model.sent[key]
        for half in halves:
            self.flights[half.idempotency_key] = half, proves
            seqs = [event.seq for event in half.events]
            self.model.sent[half.idempotency_key] = half.customer_id, seqs

    @rule(
        picks=choices,
        customer=customers,
        which=st.integers(min_value=0, max_value=7),
        verdicts=one_for_all | st.lists(one_verdict, min_size=4, max_size=4),
        wait=waits,
        twice=st.booleans(),
    )
    def settle(
        self,
        picks: list[int],
        customer: str,
        which: int,
        verdicts: list[str],
        wait: int,
        *,
        twice: bool,
    ) -> None:
        """Write an answer with a verdict on each event, once or, as after a fault, twice."""
        # One more leaves first, so that most answers are to requests of some age.
        self.begin(picks, customer)
        key = sorted(self.flights)[which % len(self.flights)]
        sent, proves = self.flights.pop(key)
        named: dict[str, list[DueEvent]] = {verdict: [] for verdict in set(verdicts)}
        for event, verdict in zip(sent.events, verdicts, strict=False):
            named.setdefault(verdict, []).append(event)
        left = named.get("open", [])
        left_open = Unanswered(f"{key}+", sent.customer_id, left) if left else None
        delivered = named.get("delivered", [])
        settlement = Settlement(
            delivered=delivered,
            deferred=[
                Deferral(event, self.now + wait, counts=True, beside_others=bool(delivered))
                for event in named.get("deferred", [])
            ],
            refused=named.get("refused", []),
            refused_alone=named.get("alone", []),
            buried=[Burial(event, "rejected", "no") for event in named.get("buried", [])],
            answered=sent,
            left_open=left_open,
            proves=proves,
        )
        self.outbox.settle(settlement, now=self.now)
        self.apply(settlement)
        if left_open:
            self.flights[left_open.idempotency_key] = left_open, proves
        if twice and delivered:
            # What was delivered is not counted again.
            self.outbox.settle(Settlement(delivered=delivered), now=self.now)

    def apply(self, settlement: Settlement) -> None:
        """Let the model take a settlement."""
        model = self.model
        assert settlement.answered is not None
        customer = settlement.answered.customer_id
        for event in settlement.delivered:
            del model.events[event.seq]
            model.delivered += 1
        if settlement.delivered:
            model.proven_to = max(model.proven_to, settlement.proves)
        for deferral in settlement.deferred:
            event = self.left(deferral.event, "deferred", customer)
            event.attempts += 1
            if deferral.beside_others and event.lone_refusal is None:
                event.lone_refusal = 0
            model.held_until[event.stream] = deferral.until
        for named in settlement.refused:
            event = self.left(named, "refused", customer)
            if settlement.delivered and event.lone_refusal is None:
                event.lone_refusal = 0
        for named in settlement.refused_alone:
            model.refuse_alone(self.left(named, "refused", customer))
        for burial in settlement.buried:
            self.left(burial.event, "dead", customer).attempts += 1
        del model.sent[settlement.answered.idempotency_key]
        if settlement.left_open is not None:
            key, customer, events = settlement.left_open
            model.sent[key] = customer, [event.seq for event in events]
        model.free_streams()

    def left(self, named: DueEvent, state: str, customer: str) -> Modelled:
        """Return the event of which an answer was no success, as it stays."""
        event = self.model.events[named.seq]
        event.state = state
        event.customer = event.customer or customer
        return event

    @rule(picks=choices, wait=waits)
    def queue(self, picks: list[int], wait: int) -> None:
        """Set some of what is due aside, those behind others among them."""
        found = self.due()
        chosen = [found[pick % len(found)] for pick in picks] if found else []
        # Of a stream, none may overtake another.
        first = {event.stream_id: event.seq for event in reversed(chosen)}
        events = [e for e in found if e.seq <= first.get(e.stream_id, 0)] if chosen else []
        until = self.now + wait
        self.outbox.queue(events, until=until)
        for event in events:
            modelled = self.model.events[event.seq]
            if modelled.state == "fresh":
                modelled.state = "deferred"
        for event in events:
            stream = self.model.events[event.seq].stream
            held = self.model.held_until.get(stream, 0)
            self.model.held_until[stream] = max(held, until)
        self.model.free_streams()

    @rule(seconds=st.integers(min_value=1, max_value=6))
    def pass_time(self, seconds: int) -> None:
        """Let waits end."""
        self.now += seconds * 1000

    # -- the operator -----------------------------------------------------------------

    @precondition(lambda self: self.model.of_state("dead"))
    @rule(pick=st.integers(min_value=0, max_value=7))
    def replay(self, pick: int) -> None:
        """Make a dead letter due again: it starts over, save for who pays."""
        dead = self.model.of_state("dead")
        event = dead[pick % len(dead)]
        assert self.outbox.replay([event.seq, event.seq], now=self.now) == 1
        event.state, event.attempts, event.lone_refusal = "deferred", 0, None
        held = self.model.held_until.get(event.stream, self.now)
        self.model.held_until[event.stream] = min(held, self.now)

    @precondition(lambda self: self.model.of_state("dead"))
    @rule(pick=st.integers(min_value=0, max_value=7))
    def purge(self, pick: int) -> None:
        """Remove a dead letter for good."""
        dead = self.model.of_state("dead")
        event = dead[pick % len(dead)]
        assert self.outbox.purge([event.seq]) == 1
        del self.model.events[event.seq]
        self.model.removed += 1

    # -- ends of the process ----------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        """Close the outbox and open it again: nothing is forgotten."""
        self.outbox.close()
        self.outbox = self.opened()
        self.take_up()

    @rule()
    def crash(self) -> None:
        """Go on with another object and never close the first."""
        self.dropped.append(self.outbox)
        self.outbox = self.opened()
        self.take_up()

    def take_up(self) -> None:
        """Know of requests under way what the outbox knows, as the next flusher does."""
        proves = self.outbox.begin([])
        self.flights = {}
        for sent in self.outbox.unanswered():
            if sent.events:
                self.flights[sent.idempotency_key] = sent, proves
            else:
                self.outbox.begin([], forget=[sent.idempotency_key])
                del self.model.sent[sent.idempotency_key]

    # -- what always holds ------------------------------------------------------------

    @invariant()
    def each_event_is_in_one_place(self) -> None:
        """The accepted are pending, dead, delivered or removed, each as the model has it."""
        status, model = self.outbox.status(), self.model
        dead = len(model.of_state("dead"))
        assert (
            status.accepted,
            status.pending,
            status.dead,
            status.delivered,
            status.removed,
            status.refused,
        ) == (
            model.accepted,
            len(model.events) - dead,
            dead,
            model.delivered,
            model.removed,
            len(model.of_state("refused")),
        )
        assert status.accepted == status.pending + status.dead + status.delivered + status.removed
        assert self.outbox.accepted() == model.accepted

    @invariant()
    def what_is_due_is_due_once_and_in_order(self) -> None:
        """Due is what the model says, nothing twice, each stream in its order."""
        found = self.due()
        waiting = [
            event.seq
            for event in self.model.of_state("deferred")
            if self.model.held_until[event.stream] <= self.now
        ]
        fresh = [event.seq for event in self.model.of_state("fresh")]
        assert sorted(event.seq for event in found if not event.fresh) == waiting
        assert [event.seq for event in found if event.fresh] == fresh
        for stream_id in {event.stream_id for event in found}:
            theirs = [e.seq for e in found if e.stream_id == stream_id and not e.held]
            assert theirs == sorted(theirs)
        for event in found:
            held = self.model.events[event.seq].stream in self.model.held_until
            assert event.held == (event.fresh and held)
        self.are_as_modelled(found)
        if found:
            middle, stream = found[len(found) // 2].seq, found[0].stream_id
            assert self.due(middle, (stream,)) == [
                event
                for event in found
                if (event.seq > middle if event.fresh else event.stream_id != stream)
            ]
        held_until = self.model.held_until.values()
        assert self.outbox.next_due_at() == min(held_until, default=None)

    @invariant()
    def refused_events_are_suspects(self) -> None:
        """Each with its number and its proof, oldest first."""
        refused = self.model.of_state("refused")
        suspects = self.outbox.suspects(limit=1_000, proven_only=False)
        assert [event.seq for event in suspects] == [event.seq for event in refused]
        self.are_as_modelled(suspects)
        assert self.outbox.suspects(limit=1_000, proven_only=True) == [
            event for event in suspects if event.proven or event.lone_refusal is None
        ]

    @invariant()
    def what_was_sent_is_known(self) -> None:
        """Requests without an answer are those of the model, with the events that are left."""
        found = self.outbox.unanswered()
        assert {sent.idempotency_key: sent.customer_id for sent in found} == {
            key: customer for key, (customer, _) in self.model.sent.items()
        }
        for sent in found:
            _, seqs = self.model.sent[sent.idempotency_key]
            living = self.model.of_state("fresh", "deferred", "refused")
            assert [event.seq for event in sent.events] == [
                event.seq for event in living if event.seq in seqs
            ]
            self.are_as_modelled(sent.events)

    @invariant()
    def the_dead_are_who_they_were(self) -> None:
        """Dead letters keep key and payload."""
        letters = list(self.outbox.dead_letters(Selector()))
        assert [(dead.seq, dead.idempotency_key, dead.payload) for dead in letters] == [
            (event.seq, event.key, event.payload) for event in self.model.of_state("dead")
        ]

    def are_as_modelled(self, events: list[DueEvent] | Any) -> None:
        """Key, content, customer, attempts and proof are what they have to be."""
        for event in events:
            modelled = self.model.events[event.seq]
            number = modelled.lone_refusal
            assert (
                event.idempotency_key,
                event.payload,
                (event.tenant_id, event.device_id),
                event.total_usage,
                event.customer_id,
                event.attempts,
                event.lone_refusal,
                event.proven,
                event.fresh,
            ) == (
                modelled.key,
                modelled.payload,
                modelled.stream,
                modelled.units,
                modelled.customer,
                modelled.attempts,
                number,
                number is not None and number <= self.model.proven_to,
                modelled.state == "fresh",
            )


TestOutboxMachine = OutboxMachine.TestCase
# The same on every run: what it finds is a defect, not bad luck.
TestOutboxMachine.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
