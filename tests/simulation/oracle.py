"""What must hold whatever happens: looks at what leaves, what is told, and what the file says."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tests.simulation.dialects import REJECTED, RETRIABLE, STORED, UNKNOWN
from tests.simulation.proof import Verdict, lacks_proof

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.simulation.proxy import Said
    from tests.simulation.wire import Letter


class Broken(AssertionError):
    """A promise was broken."""


class Known:
    """An accepted event, and all that is known of its way."""

    def __init__(self, seq: int, key: str, stream: str, units: int, event_time: int | None) -> None:
        self.seq = seq
        self.key = key
        self.stream = stream
        self.tenant_id = stream.partition("/")[0]
        self.units = units
        self.event_time = event_time
        """As its caller gave it."""
        self.is_imported = False
        self.record: str | None = None
        """Its text as first sent."""
        self.is_gone = False
        self.is_dead = False
        self.is_purged = False
        self.was_dead = False
        self.is_open: tuple[str, ...] = ()
        """The keys of the request that it was last sent in, while its outcome is unknown."""
        self.is_owed = False
        """The client was told that it is stored, and could not write it down."""
        self.is_seen = False
        """The client was told so, and has yet to write it down."""
        self.verdicts: list[Verdict] = []
        """Those that the client has seen, since it was last replayed."""
        self.was_refused = False
        self.misses_before = 0
        """How often its tenant had been missed when it was replayed."""
        self.attempts = 0
        """As charged in the outbox, when it was last looked at."""


class Departure(NamedTuple):
    """A request that has left: which events, and when."""

    letter: Letter
    events: Sequence[Known]
    issued: int


class Oracle:
    """Raises `Broken` as soon as something is not as promised."""

    def __init__(self, path: str, *, max_attempts: int, drops: bool) -> None:
        self.events: dict[str, Known] = {}
        self.posted = 0
        self.tick = 0
        self.requests = 0
        self.stored: dict[str, list[str]] = {}
        """What the proxy has stored, as it tells us."""
        self.failed: set[str] = set()
        """What it has not stored, once, though perhaps what came with it."""
        self.accepted: list[tuple[str, Verdict]] = []
        """Key and verdict of all that the client knows to be stored."""
        self.misses: dict[str, int] = defaultdict(int)
        """Of each tenant: how often in a row the accounts API said that it has no account."""
        self._all_misses: dict[str, int] = defaultdict(int)
        self._units = 0
        self._removed = 0
        self._path = path
        self._max_attempts = max_attempts
        self._drops = drops
        self._streams: dict[str, list[Known]] = defaultdict(list)
        self._under_way: dict[int, Departure] = {}
        self._by_header: dict[str, tuple[str, ...]] = {}
        self._by_records: dict[tuple[str, ...], str] = {}
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- what happens -------------------------------------------------------------------

    def post(self, key: str, stream: str, units: int, event_time: int | None = None) -> None:
        """An event was accepted."""
        self.posted += 1
        self._units += units
        event = Known(self.posted, key, stream, units, event_time)
        if key in self.events:
            self._broken("key-unique", f"{key} was given to two events")
        self.events[key] = event
        self._streams[stream].append(event)

    def take_in(self, key: str) -> None:
        """A dead letter that had been purged was imported: it is accepted again, in a new place."""
        event = self.events[key]
        self.posted += 1
        self._units += event.units
        event.seq = self.posted
        event.is_imported = event.is_dead = True
        event.is_gone = event.is_purged = False
        event.record = None
        event.verdicts.clear()
        self._streams[event.stream].remove(event)
        self._streams[event.stream].append(event)

    def issue(self, number: int, letter: Letter) -> None:
        """A request leaves."""
        self.tick += 1
        self.requests += 1
        records = letter.records
        keys = tuple(json.loads(record)["value"]["idempotency_key"] for record in records)
        events = [self.events[key] for key in keys]
        if not any(event.is_imported for event in events):
            # They have another place now, and so another content.
            self._check_header(letter, tuple(records))
        if len(set(keys)) != len(keys):
            self._broken("key-unique", f"twice in one request: {keys}")
        streams = {event.stream for event in events}
        if len({stream.rpartition("/")[0] for stream in streams}) != 1:
            self._broken("one-device", f"one request carries {sorted(streams)}")
        for other in self._under_way.values():
            if streams & {event.stream for event in other.events if not event.is_seen}:
                self._broken("one-under-way", f"{keys} and {[e.key for e in other.events]}")
        self._check_company(events)
        for event, record in zip(events, records, strict=True):
            self._check_may_leave(event, record, keys)
        for event, record in zip(events, records, strict=True):
            event.record = record
            event.is_open = keys
        self._under_way[number] = Departure(letter, events, self.tick)

    def _check_header(self, letter: Letter, records: tuple[str, ...]) -> None:
        header = letter.headers["Idempotency-Key"]
        if self._by_header.setdefault(header, records) != records:
            self._broken("header", f"{header} was sent with other records before")
        if self._by_records.setdefault(records, header) != header:
            self._broken("header", f"{header}: the same records had another header before")

    def _check_company(self, events: Sequence[Known]) -> None:
        tried = {event.stream: event for event in reversed(events) if event.attempts}
        for event in events:
            first = tried.get(event.stream, event)
            if first.seq < event.seq:
                self._broken("company", f"{event.key} may be stored before {first.key}")

    def _check_may_leave(self, event: Known, record: str, keys: tuple[str, ...]) -> None:
        key = event.key
        if event.is_gone or event.is_dead or event.is_owed or event.is_seen:
            self._broken("sent-in-vain", f"{key} is delivered or dead, and is sent again")
        if event.record is not None and event.record != record:
            self._broken("content", f"{key} was {event.record}, is {record}")
        value = json.loads(record)["value"]
        event_time = value["event_time"] if event.event_time is None else event.event_time
        said = value["total_usage"], value["seq"], value["event_time"]
        if said != (event.units, event.seq, event_time):
            self._broken("posted", f"{key} is sent as {record}")
        if event.is_open and not set(keys) <= set(event.is_open):
            self._broken("identical", f"{event.is_open} is unanswered, but {keys} is sent")
        is_new = event.record is None
        for other in self._streams[event.stream]:
            if other.is_gone or other.is_dead or other.is_seen:
                continue
            if is_new and other.is_open and other.key not in keys:
                self._broken("unanswered-first", f"{key} is sent while {other.key} is unanswered")
            if other.seq >= event.seq or other.was_dead or other.was_refused:
                continue
            if (
                event.was_dead
                or event.was_refused
                or (other.key in keys and keys.index(other.key) < keys.index(key))
            ):
                continue
            self._broken("order", f"{key} is sent before {other.key}")

    def came(self, number: int, said: Said) -> None:
        """The client has seen that all of a request was stored, and is yet to write it down."""
        if set(said.told) != {STORED}:
            self._broken("came", f"{said.told} is taken for accepted")
        for event in self._under_way[number].events:
            event.is_seen = True

    def finish(self, number: int, said: Said, *, handled: int, is_written: bool) -> None:
        """The client has seen an answer; whether it could write down what came of it."""
        self.tick += 1
        departure = self._under_way.pop(number)
        is_alone = len(departure.events) == 1
        is_beside = STORED in said.told
        for event, fate in zip(departure.events, said.told, strict=True):
            event.is_seen = False
            if fate == UNKNOWN:
                continue
            event.is_open = () if is_written else event.is_open
            verdict = Verdict(
                fate, is_alone, is_beside, said.whole, departure.issued, handled, self.tick
            )
            event.verdicts.append(verdict)
            if fate == STORED:
                self.accepted.append((event.key, verdict))
                event.is_owed = True
            elif fate == REJECTED and (is_alone or not said.whole):
                event.was_refused = True
            elif fate == RETRIABLE:
                # What was sent with it of its stream waits behind it, in whatever company.
                for other in self._streams[event.stream]:
                    other.is_open = ()
                counted = sum(one.fate == RETRIABLE for one in event.verdicts)
                event.was_refused |= is_alone and counted >= self._max_attempts

    def crash(self) -> None:
        """The flusher is gone, with all that it has not written."""
        self.tick += 1
        self._under_way.clear()
        for event in self.events.values():
            event.is_owed = event.is_seen = False

    def answer_account(self, tenant_id: str, account: str | None, *, is_written: bool) -> None:
        """The client has seen an answer of the accounts API; whether it could write it down."""
        if account == "absent":
            # It may have been written before the outbox failed.
            self.misses[tenant_id] += 1
            self._all_misses[tenant_id] += 1
        elif account == "found" and is_written:
            self.misses[tenant_id] = 0

    # -- what the file says ----------------------------------------------------------------

    def look(self, *, purged: Iterable[str] = (), replayed: Iterable[str] = ()) -> None:
        """Compare the outbox, read without the code under test, with what must be there."""
        if self._connection is None:
            self._connection = sqlite3.connect(self._path)
        rows = {
            key: (state, attempts, reason)
            for key, state, attempts, reason in self._connection.execute(
                "SELECT idempotency_key, state, attempts, reason FROM events"
            )
        }
        (counts,) = self._connection.execute(
            "SELECT delivered_events, removed_events, dead_events FROM outbox"
        )
        for key in purged:
            event = self.events[key]
            event.is_purged = event.is_gone = True
            event.is_dead = False
            self._removed += 1
        for key in replayed:
            event = self.events[key]
            event.is_dead = False
            event.misses_before = self._all_misses[event.tenant_id]
            event.verdicts.clear()
        self._look_at_rows(rows)
        gone = [event for event in self.events.values() if event.is_gone]
        delivered = sum(not event.is_purged for event in gone)
        dead = sum(event.is_dead for event in self.events.values())
        if counts != (delivered, self._removed, dead):
            self._broken("balance", f"the outbox counts {counts} of {len(gone)} gone, {dead} dead")

    def _look_at_rows(self, rows: dict[str, tuple[str, int, str | None]]) -> None:
        for event in self.events.values():
            if event.is_gone:
                if event.key in rows:
                    self._broken("gone-is-gone", f"{event.key} is back")
                continue
            row = rows.get(event.key)
            if row is None:
                self._check_was_stored(event)
                continue
            state, attempts, reason = row
            event.attempts = attempts
            if state == "dead" and not event.is_dead:
                self._check_was_proven(event, str(reason))
                event.is_dead = event.was_dead = True
                event.is_open = ()
            elif state != "dead" and event.is_dead:
                self._broken("dead-is-dead", f"{event.key} is {state}")
            charged = sum(verdict.fate == RETRIABLE for verdict in event.verdicts)
            if state != "dead" and attempts > charged:
                self._broken("attempts", f"{event.key} has {attempts}, was asked for {charged}")

    def _check_was_stored(self, event: Known) -> None:
        was_told = any(verdict.fate == STORED for verdict in event.verdicts)
        if self._drops and not was_told:
            if event.is_open:
                self._broken("dropped", f"{event.key} may have been stored, and is dropped")
            event.is_purged = event.is_gone = True
            self._removed += 1
            return
        if not self.stored.get(event.key):
            self._broken("stored", f"{event.key} has left the outbox and was never stored")
        if not was_told:
            self._broken("told", f"{event.key} has left the outbox, but nobody said it was stored")
        event.is_gone = True
        event.is_owed = False
        event.is_open = ()

    def _check_was_proven(self, event: Known, reason: str) -> None:
        if reason == "customer_not_found":
            since = self._all_misses[event.tenant_id] - event.misses_before
            if min(since, self.misses[event.tenant_id]) < self._max_attempts:
                self._broken("account", f"{event.key} is dead after {self.misses}, {since} answers")
            return
        words = lacks_proof(
            event.key,
            reason,
            event.verdicts,
            self.accepted,
            max_attempts=self._max_attempts,
        )
        if words:
            self._broken("proof", f"{event.key} is dead ({reason}): {words}")

    def check_written(self, written: Iterable[str]) -> None:
        """Whatever the client was told to be stored is counted by now."""
        for key in written:
            if not self.events[key].is_gone:
                self._broken("counted", f"{key} was said to be stored, and is not counted")

    @property
    def owed(self) -> list[str]:
        """What the client was told to be stored."""
        return [event.key for event in self.events.values() if event.is_owed]

    @property
    def left(self) -> list[Known]:
        """The events that are neither gone nor dead."""
        return [event for event in self.events.values() if not (event.is_gone or event.is_dead)]

    def check_sums(self) -> None:
        """Units in the ledger and in the outbox are those that were posted."""
        with contextlib.closing(sqlite3.connect(self._path)) as connection:
            delivered, removed = (
                sum(int(units) for (units,) in connection.execute(f"SELECT {name} FROM ledger"))  # noqa: S608  # two names of ours
                for name in ("delivered_units", "removed_units")
            )
            (here,) = connection.execute("SELECT coalesce(sum(total_usage), 0) FROM events")
        of_delivered = sum(
            event.units for event in self.events.values() if event.is_gone and not event.is_purged
        )
        if (self._units, of_delivered) != (delivered + removed + here[0], delivered):
            self._broken(
                "sums", f"{self._units} units posted, {delivered}, {removed}, {here} counted"
            )

    def check_arrivals(self) -> None:
        """Each key was stored with one content only, those of a stream first in their order."""
        for key, records in self.stored.items():
            if len(set(records)) > 1 and not self.events[key].is_imported:
                self._broken("content", f"{key} was stored as {set(records)}")
        # In the order of their first arrivals.
        latest: dict[str, Known] = {}
        for event in (self.events[key] for key, records in self.stored.items() if records):
            if event.was_refused or event.was_dead or event.key in self.failed:
                continue
            before = latest.setdefault(event.stream, event)
            if event.seq < before.seq:
                self._broken("arrivals", f"{event.key} arrived after {before.key}")
            latest[event.stream] = event

    def _broken(self, rule: str, words: str) -> NoReturn:
        raise Broken(f"[{rule}] {words}")
