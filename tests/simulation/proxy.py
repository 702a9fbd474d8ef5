"""The proxy and the accounts API of the simulation, in all their moods."""

from __future__ import annotations

import email.utils
import json
import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import unquote

from meter_worker.http_link import LinkFailed, Reply
from tests.simulation.dialects import (
    REJECTED,
    RETRIABLE,
    STORED,
    UNKNOWN,
    Produced,
    json_reply,
    render,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from tests.fakes import ManualClock
    from tests.simulation.wire import Answer, Letter

PARTITIONS = 3
_OUTAGE_STATUSES = (401, 403, 404, 405, 407, 408, 409, 415, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 307, 308)

Value: TypeAlias = "dict[str, Any]"


class Said(NamedTuple):
    """An answer, and what the client may take it to mean."""

    answer: Answer
    told: Sequence[str] = ()
    """The fate of each record as far as the answer tells it."""
    is_outage: bool = False
    retry_after_seconds: float | None = None
    retry_after_at: float | None = None
    """Seconds since the epoch, where it asks for a date."""
    whole: bool = False
    """Whether it refuses the request, not its records."""
    account: str | None = None
    """Of the accounts API: `found`, `absent`, or None for an outage."""


class Proxy:
    """Stores records, and answers as its mood is. All draws come from one seed."""

    def __init__(self, draw: random.Random, clock: ManualClock, dialect: str, limit: int) -> None:
        self.draw = draw
        self.clock = clock
        self.dialect = dialect
        self.pinned = False
        self.limit = limit
        self.stored: dict[str, list[str]] = defaultdict(list)
        """The records stored under each idempotency key, in the order they came."""
        self.failed: set[str] = set()
        """Keys that were not stored, once, while others in the same request may have been."""
        self.poison: dict[str, str] = {}
        """Keys that are never accepted: as a `request` with them, or as a `record` of one."""
        self.moods: Sequence[tuple[str, float]] = [("good", 1.0)]
        self.sick_streams: set[str] = set()
        """Streams whose partition wants everything again."""
        self.flaky = 0.0
        """How often a record is wanted again, whatever becomes of its neighbours."""
        self.accounts_moods: Sequence[tuple[str, float]] = [("found", 1.0)]
        self.absent: set[str] = set()
        self.customers: dict[str, int] = {}
        self._moods: dict[str, Callable[[Letter], Said]] = {
            "good": self._good,
            "store_and_drop": self._store_and_drop,
            "drop": self._drop,
            "twice": self._twice,
            "status": self._status,
            "redirect": self._redirect,
            "portal": self._portal,
            "garbled": self._garbled,
            "refuse_all": self._refuse_all,
            "lacks_rights": self._lacks_rights,
            "known_already": self._known_already,
        }

    # -- the events API -----------------------------------------------------------------

    def handle(self, letter: Letter) -> Said:
        """Do what the mood of the moment makes of a request, and answer it."""
        names, weights = zip(*self.moods, strict=True)
        (mood,) = self.draw.choices(names, weights)
        return self._moods[mood](letter)

    def store(self, letter: Letter) -> None:
        """Store what came late, long after anybody waited for the answer."""
        self._produce(letter)

    def _produce(self, letter: Letter) -> list[Produced] | Said:
        """Check the request and store its records, as far as they will do."""
        records = letter.records
        values = [_value(record) for record in records]
        if letter.size > self.limit:
            body = {"error_code": 413, "message": "HTTP Request Entity Too Large"}
            return Said(json_reply(413, body), [REJECTED] * len(records), whole=True)
        if any(self.poison.get(value["idempotency_key"]) == "request" for value in values):
            return self._refuse_all(letter)
        fates = [self._fate(value) for value in values]
        partitions = [_partition(value) for value in values]
        if self.dialect == "redpanda":
            # A batch of a partition is stored or not as one.
            bad = {
                partition: next(
                    (f for f, p in zip(fates, partitions, strict=True) if p == partition and f),
                    "",
                )
                for partition in partitions
            }
            fates = [bad[partition] for partition in partitions]
        produced = []
        for record, value, fate, partition in zip(records, values, fates, partitions, strict=True):
            if fate:
                self.failed.add(value["idempotency_key"])
            else:
                self.stored[value["idempotency_key"]].append(record)
            produced.append(Produced(fate or STORED, partition))
        return produced

    def _fate(self, value: Value) -> str:
        if self.poison.get(value["idempotency_key"]) == "record":
            return REJECTED
        if _stream(value) in self.sick_streams or self.draw.random() < self.flaky:
            return RETRIABLE
        return ""

    def _good(self, letter: Letter) -> Said:
        produced = self._produce(letter)
        if isinstance(produced, Said):
            return produced
        reply = render(self.dialect, produced, self.draw)
        told = [one.fate for one in produced]
        if self.dialect == "redpanda" and len(produced) > 1:
            entries = len(json.loads(reply.body)["offsets"])
            stored = told.count(STORED)
            if entries == len(produced):
                # By chance as many as records: of some failed, nobody can say which.
                is_told = stored in (0, len(told))
            else:
                is_told = stored == len(told) and self.pinned
            if not is_told:
                return Said(reply, [UNKNOWN] * len(told))
        return Said(reply, told)

    def _unknown(self, letter: Letter, answer: Answer) -> Said:
        return Said(answer, [UNKNOWN] * len(letter.records), is_outage=True)

    def _store_and_drop(self, letter: Letter) -> Said:
        self._produce(letter)
        return self._drop(letter)

    def _drop(self, letter: Letter) -> Said:
        return self._unknown(letter, LinkFailed("the connection was reset"))

    def _twice(self, letter: Letter) -> Said:
        self._produce(letter)
        return self._good(letter)

    def _maybe_store(self, letter: Letter) -> None:
        if self.draw.random() < 0.3:
            self._produce(letter)

    def _status(self, letter: Letter) -> Said:
        self._maybe_store(letter)
        status = self.draw.choice(_OUTAGE_STATUSES)
        headers: dict[str, str] = {}
        seconds: float | None = None
        at: float | None = None
        if status in {429, 503} and self.draw.random() < 0.5:
            seconds = float(self.draw.choice([1, 7, 60, 900, 3600, 86_400]))
            headers["Retry-After"] = str(int(seconds))
            if self.draw.random() < 0.5:
                at = self.clock.now() // 1000 + seconds
                headers["Retry-After"] = email.utils.formatdate(at, usegmt=True)
                seconds = None
        reply = json_reply(status, {"error_code": status, "message": "no"}, headers)
        if self.draw.random() < 0.3:
            reply = Reply(status, {"Content-Type": "text/plain"} | headers, b"no")
        said = self._unknown(letter, reply)
        return said._replace(retry_after_seconds=seconds, retry_after_at=at)

    def _redirect(self, letter: Letter) -> Said:
        where = {"Location": "http://127.0.0.1/login"}
        return self._unknown(letter, Reply(self.draw.choice(_REDIRECTS), where, b""))

    def _portal(self, letter: Letter) -> Said:
        status = self.draw.choice([200, 200, 204, 202, 400, 422, 404, 511])
        page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
        body = b"" if status == 204 else page
        return self._unknown(letter, Reply(status, {"Content-Type": "text/html"}, body))

    def _garbled(self, letter: Letter) -> Said:
        produced = self._produce(letter)
        count = len(letter.records)
        good = [{"partition": 0, "offset": 1}] * (count + 2)
        whole = json.dumps({"offsets": good[:count]}).encode()
        body = self.draw.choice(
            [
                whole[: self.draw.randrange(1, len(whole))],
                bytes(self.draw.randrange(256) for _ in range(20)),
                b"[" * 100_000,
                json.dumps({"offsets": good[: count + 1]}).encode(),
                json.dumps({"offsets": [None] * count}).encode(),
                json.dumps({"offsets": [{"partition": 0}] * count}).encode(),
                json.dumps({"offsets": [{"offset": "1"}] * count}).encode(),
                json.dumps({"offsets": good[:count], "error_code": 500, "message": "x"}).encode(),
                b"{}",
                b"null",
            ]
        )
        del produced
        # Which of these are an outage and which call for lone records is not for us to say.
        said = self._unknown(letter, Reply(200, {"Content-Type": "application/json"}, body))
        return said._replace(is_outage=False)

    def _refuse_all(self, letter: Letter) -> Said:
        status = self.draw.choice([400, 422])
        body = {"error_code": status, "message": "Invalid request format"}
        return Said(json_reply(status, body), [REJECTED] * len(letter.records), whole=True)

    def _lacks_rights(self, letter: Letter) -> Said:
        """Some are stored, of the others the broker says that the proxy may not."""
        if self.dialect == "redpanda":
            return self._drop(letter)
        produced = self._produce(letter)
        if isinstance(produced, Said):
            return produced
        told = [UNKNOWN if one.fate != STORED else STORED for one in produced]
        if STORED not in told or UNKNOWN not in told:
            return self._good_of(produced)
        entries = [
            {"partition": 0, "offset": 5}
            if fate == STORED
            else {"error_code": 40301, "error": "not authorized", "message": "not authorized"}
            for fate in told
        ]
        return Said(json_reply(403, {"offsets": entries}), told, is_outage=True)

    def _good_of(self, produced: Sequence[Produced]) -> Said:
        return Said(render(self.dialect, produced, self.draw), [one.fate for one in produced])

    def _known_already(self, letter: Letter) -> Said:
        """A gateway says that the request is being worked on: then it is, or is not."""
        self._maybe_store(letter)
        return self._unknown(letter, json_reply(409, {"error_code": 409, "message": "in use"}))

    # -- the accounts API ---------------------------------------------------------------

    def look_up(self, letter: Letter) -> Said:
        """Answer who pays for a tenant."""
        tenant_id = unquote(letter.url.rpartition("/")[2])
        names, weights = zip(*self.accounts_moods, strict=True)
        (mood,) = self.draw.choices(names, weights)
        if mood == "down":
            failures: list[Answer] = [
                LinkFailed("refused"),
                LinkFailed("late", timed_out=True),
                Reply(503, {"Retry-After": "30"}, b"no"),
                Reply(404, {"Content-Type": "text/html"}, b"<html>not here</html>"),
                Reply(200, {"Content-Type": "text/html"}, b"<html>log in</html>"),
                Reply(200, {}, b'{"name": "no id"}'),
                Reply(302, {"Location": "http://127.0.0.1/"}, b""),
                Reply(401, {}, b"{}"),
            ]
            return Said(self.draw.choice(failures), is_outage=True)
        if tenant_id in self.absent:
            return Said(json_reply(404, {"detail": "no such tenant"}), account="absent")
        number = self.customers.get(tenant_id, 0)
        account = {"id": f"{tenant_id}-{number}" if number % 2 else 1000 + number}
        body: object = [account, {"id": "another"}] if self.draw.random() < 0.3 else account
        return Said(json_reply(200, body), account="found")


def _value(record: str) -> Value:
    value: Value = json.loads(record)["value"]
    return value


def _stream(value: Value) -> str:
    return f"{value['tenant_id']}/{value['device_id']}/{value['meter_id']}"


def _partition(value: Value) -> int:
    return zlib.crc32(_stream(value).encode()) % PARTITIONS
