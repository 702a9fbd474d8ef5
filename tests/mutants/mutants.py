"""The deliberate bugs: those that have cost users of such libraries their data, and ours.

Each is a text of the sources and what stands there instead, with the tests that must
notice. A mutant whose text is no longer found is out of date; a test says so.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]

WORKER = "worker/meter_worker"
OUTBOX = "meter_lib/_sqlite"

FLUSHER = (
    "tests/unit/test_flusher.py",
    "tests/unit/test_flusher_refusals.py",
    "tests/unit/test_flusher_outages.py",
    "tests/unit/test_flusher_accounts.py",
    "tests/unit/test_flusher_failing_outbox.py",
    "tests/unit/test_flusher_side_by_side.py",
    "tests/unit/test_flusher_pace.py",
    "tests/unit/test_flusher_ahead.py",
)


WIRE = ("tests/wire", "tests/unit/test_verdicts.py", "tests/integration/test_http_link.py")

KAFKA = (
    "tests/kafka/test_kafka_backend.py",
    "tests/kafka/test_kafka_verdicts.py",
    "tests/kafka/test_kafka_worker.py",
    "tests/kafka/test_kafka_settings.py",
)

OPERATING = (
    "tests/integration/test_cli_letters.py",
    "tests/integration/test_cli_pending.py",
    "tests/integration/test_cli_replay.py",
)

SERVER_POSTS = ("tests/postgres/test_transactional.py",)

MOVING = ("tests/integration/test_move.py",)

WITHIN = ("tests/integration/test_post_within.py", "tests/durability/test_callers_commits.py")


class Mutant(NamedTuple):
    """A deliberate bug."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[str, str] | None = None
    """Another text of the same file and its replacement, where the product is doubly safe."""

    def applied_to(self, source: str) -> str:
        """Return the source with the bug in it. Raises ValueError where it does not apply."""
        for old, new in ((self.old, self.new), *([self.also] if self.also else [])):
            if source.count(old) != 1:
                raise ValueError(f"{self.name}: {self.file} holds its text {source.count(old)} x")
            source = source.replace(old, new)
        return source


MUTANTS = (
    # -- what is sent, and when ---------------------------------------------------------
    Mutant(
        "two requests of one stream under way at once",
        f"{WORKER}/departures.py",
        "            out.streams.update(parcel.streams)\n",
        "",
        FLUSHER,
    ),
    Mutant(
        "the next request of a stream leaves though not all of the last one was accepted",
        f"{WORKER}/arrivals.py",
        "all(type(verdict) is Delivered for verdict in answer.verdicts)",
        "answer.verdicts",
        FLUSHER,
    ),
    Mutant(
        "what was sent and not answered is forgotten with the process",
        f"{WORKER}/flusher.py",
        "        self._departures.again.put_first(parcels, unanswered=True)\n"
        "        self._restored = True\n",
        "        self._restored = True\n",
        FLUSHER,
    ),
    Mutant(
        "what was sent and not answered is joined with new events",
        f"{WORKER}/flusher.py",
        "for request in self._outbox.unanswered():",
        "for request in ():",
        FLUSHER,
    ),
    Mutant(
        "a request leaves before it is written down",
        f"{WORKER}/flusher.py",
        "proves = self._outbox.begin([parcel.unanswered() for parcel in parcels])",
        "proves = self._outbox.begin([])",
        FLUSHER,
    ),
    Mutant(
        "the customer is that of the latest answer, not of the first attempt",
        f"{WORKER}/payers.py",
        "return event.customer_id or self.customer_id(event.tenant_id)",
        "return self.customer_id(event.tenant_id)",
        FLUSHER,
    ),
    Mutant(
        "an event that is tried again is overtaken in its own request",
        f"{WORKER}/parcels.py",
        "            closed.add(event.stream_id)\n",
        "            pass\n",
        ("tests/unit/test_flusher_weather.py", *FLUSHER),
    ),
    Mutant(
        "events behind one that waits are not set aside",
        f"{WORKER}/arrivals.py",
        "                self._departures.set_aside(streams)\n",
        "                pass\n",
        FLUSHER,
    ),
    Mutant(
        "the idempotency key of a request does not depend on its records",
        f"{WORKER}/wire.py",
        "*(event.idempotency_key for event in events)]",
        "events[0].idempotency_key]",
        ("tests/unit/test_wire.py",),
    ),
    Mutant(
        "what was dropped while it was in view is delivered as well",
        f"{WORKER}/flusher.py",
        "            if gone:\n",
        "            if False:\n",
        ("tests/integration/test_drop_oldest.py",),
    ),
    Mutant(
        "a stream is put back from its beginning",
        f"{WORKER}/again.py",
        "for parcel in self._parcels[::-1]:",
        "for parcel in list(self._parcels):",
        FLUSHER,
    ),
    Mutant(
        "of a stream without room in view, an event is held with all it carries",
        f"{WORKER}/window.py",
        'event._replace(payload="")',
        "event",
        FLUSHER,
    ),
    Mutant(
        "a slow look-up is asked for again while it is under way",
        f"{WORKER}/flusher.py",
        "question = self._payers.to_ask() if self._question is None else None",
        "question = self._payers.to_ask()",
        FLUSHER,
    ),
    Mutant(
        "a tenant whose requests hang takes every place",
        f"{WORKER}/departures.py",
        "return tenant_id not in out.tenants or not self.trouble[tenant_id]",
        "return True",
        FLUSHER,
    ),
    # -- outages ------------------------------------------------------------------------
    Mutant(
        "jitter before the cap",
        f"{WORKER}/retry_policy.py",
        "        return max(self._wait(state), asked_for)\n",
        "        state.attempt_number = 99\n"
        "        return max(self._wait(state) * 0 + 300.0, asked_for)\n",
        ("tests/unit/test_retry_policy.py",),
    ),
    Mutant(
        "Retry-After without a cap",
        f"{WORKER}/retry_policy.py",
        "asked_for = min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)",
        "asked_for = retry_after_seconds or 0.0",
        ("tests/unit/test_retry_policy.py", "tests/unit/test_flusher_outages.py"),
    ),
    Mutant(
        "Retry-After is ignored",
        f"{WORKER}/retry_policy.py",
        "asked_for = min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)",
        "asked_for = 0.0",
        ("tests/unit/test_retry_policy.py", "tests/unit/test_flusher_outages.py"),
    ),
    Mutant(
        "a date in Retry-After is compared with our own clock",
        f"{WORKER}/answers.py",
        "now / 1000 if answered_at is None else answered_at",
        "now / 1000",
        WIRE,
    ),
    Mutant(
        "the wall clock in the backoff",
        f"{WORKER}/arrivals.py",
        "return self._link.failed(outage, self._clock.steady(), sent_in=sent_in)",
        "return self._link.failed(outage, self._clock.now(), sent_in=sent_in)",
        FLUSHER,
    ),
    Mutant(
        "no pause after an outage",
        f"{WORKER}/flusher.py",
        "if paused_until is None or in_doubt:",
        "if True:",
        FLUSHER,
    ),
    Mutant(
        "the whole backlog instead of one event after an outage",
        f"{WORKER}/flusher.py",
        "if not is_down and words is None:",
        "if words is None:",
        FLUSHER,
    ),
    Mutant(
        "every request that fails in one outage is another outage",
        f"{WORKER}/links.py",
        "is_same = sent_in is not None and sent_in != self.outage and link.failures > 0",
        "is_same = False",
        FLUSHER,
    ),
    Mutant(
        "what was sent before an outage ends it",
        f"{WORKER}/arrivals.py",
        "recovers=flight.outage == self._link.outage,",
        "recovers=True,",
        FLUSHER,
    ),
    Mutant(
        "a fleet comes back at once",
        f"{WORKER}/links.py",
        "        wait += self._spread(",
        "        self._spread(",
        FLUSHER,
    ),
    Mutant(
        "the backoff of a link is forgotten by a restart",
        f"{WORKER}/links.py",
        "        failures = link.failures + (not is_same)\n",
        "        failures = 1\n",
        FLUSHER,
    ),
    Mutant(
        "a time-out leaves the requests as large as they were",
        f"{WORKER}/arrivals.py",
        "self._pace.timed_out(len(parcel.events))",
        "pass",
        FLUSHER,
    ),
    Mutant(
        "the limit on bodies is learnt anew for each batch",
        f"{WORKER}/arrivals.py",
        "self._pace.too_large(parcel.body_bytes)",
        "pass",
        FLUSHER,
    ),
    Mutant(
        "no limit on the events a second",
        f"{WORKER}/pace.py",
        "            self._allowed -= events\n",
        "            pass\n",
        FLUSHER,
    ),
    # -- refusals -----------------------------------------------------------------------
    Mutant(
        "the canary is off: refused alone once is enough",
        f"{WORKER}/settling.py",
        "if event.proven and (event.lone_refusal or 0) > 0:",
        "if True:",
        FLUSHER,
    ),
    Mutant(
        "an acceptance of what was sent before the refusal is proof",
        f"{WORKER}/arrivals.py",
        "proves=flight.proves,",
        "proves=2**31,",
        FLUSHER,
    ),
    Mutant(
        "refused in company is forgotten",
        f"{WORKER}/arrivals.py",
        "refused=[event for event, _ in by_verdict.rejected],",
        "refused=[],",
        FLUSHER,
    ),
    Mutant(
        "refused in company counts as refused alone",
        f"{OUTBOX}/settling.py",
        "beside_others = 0 if settlement.delivered else None",
        "beside_others = 1 if settlement.delivered else None",
        FLUSHER,
    ),
    Mutant(
        "a refused batch is a batch of dead letters",
        f"{WORKER}/arrivals.py",
        "            again.replace(parcel, parcel.halves())\n            return\n",
        "            again.replace(parcel, parcel.singles())\n            return\n",
        FLUSHER,
    ),
    Mutant(
        "a partial failure sends the whole batch again",
        f"{WORKER}/arrivals.py",
        "            delivered=by_verdict.delivered,\n            deferred",
        "            delivered=by_verdict.delivered if not by_verdict.retriable else [],\n"
        "            deferred",
        FLUSHER,
    ),
    Mutant(
        "attempts are charged while nothing is accepted",
        f"{WORKER}/doubts.py",
        "return bool(failing) and len(self._failing) > 1",
        "return False",
        FLUSHER,
    ),
    Mutant(
        "attempts are exhausted though nothing else is accepted",
        f"{WORKER}/settling.py",
        "elif event.proven:",
        "elif True:",
        FLUSHER,
    ),
    Mutant(
        "attempts are exhausted in company",
        f"{WORKER}/settling.py",
        "if attempts < enough or not alone:",
        "if attempts < enough:",
        ("tests/unit/test_settling.py",),
    ),
    Mutant(
        "an answer that names no record is sent again as it was",
        f"{WORKER}/arrivals.py",
        "again.replace(parcel, parcel.singles())",
        "pass",
        FLUSHER,
    ),
    Mutant(
        "refused events are never asked about again",
        f"{WORKER}/departures.py",
        "        self._may_have_suspects = True\n\n    def begin_round",
        "        self._may_have_suspects = False\n\n    def begin_round",
        FLUSHER,
    ),
    Mutant(
        "a backend that refuses everything is asked about everything",
        f"{WORKER}/doubts.py",
        "return self._in_round.total() >= self._of_all",
        "return False",
        FLUSHER,
    ),
    # -- verdicts -----------------------------------------------------------------------
    Mutant(
        "a 422 with entries is a refusal of everything",
        f"{WORKER}/verdict_table.py",
        """        (400, 422),
        (Shape.FAILED,),
        Action.READ,
""",
        """        (400, 422),
        (Shape.FAILED,),
        Action.SPLIT,
""",
        WIRE,
    ),
    Mutant(
        "a 200 is delivered, whatever it says",
        f"{WORKER}/verdict_table.py",
        """        _SUCCESS,
        (Shape.FAILED,),
        Action.READ,
""",
        """        _SUCCESS,
        (Shape.FAILED,),
        Action.DELIVERED,
""",
        WIRE,
    ),
    Mutant(
        "the page of a captive portal is a success",
        f"{WORKER}/verdict_table.py",
        """        None,
        Action.PAUSE,
        "not the answer of a Kafka REST proxy (a captive portal, or a wrong URL)",
""",
        """        None,
        Action.DELIVERED,
        "not the answer of a Kafka REST proxy (a captive portal, or a wrong URL)",
""",
        WIRE,
    ),
    Mutant(
        "fewer entries than records are a success in any dialect",
        f"{WORKER}/verdict_table.py",
        "        pinned=Dialect.REDPANDA,\n",
        "",
        WIRE,
    ),
    Mutant(
        "an answer that names no record is a success of all",
        f"{WORKER}/verdict_table.py",
        """        _MISCOUNTED,
        Action.SINGLES,
        "",
        "Some records""",
        """        _MISCOUNTED,
        Action.DELIVERED,
        "",
        "Some records""",
        WIRE,
    ),
    Mutant(
        "a 403 is a refusal of the events",
        f"{WORKER}/verdict_table.py",
        "        (400, 422),\n        (Shape.JSON, Shape.TEXT),\n",
        "        (400, 403, 422),\n        (Shape.JSON, Shape.TEXT),\n",
        WIRE,
    ),
    Mutant(
        "the page of a gateway is a refusal of the events",
        f"{WORKER}/verdict_table.py",
        "        (400, 422),\n        (Shape.JSON, Shape.TEXT),\n",
        "        (400, 422),\n        None,\n",
        WIRE,
    ),
    Mutant(
        "half an answer is a refusal of the events",
        f"{WORKER}/answers.py",
        "return Shape.TEXT if _is_readable(text) else Shape.BROKEN",
        "return Shape.TEXT",
        WIRE,
    ),
    Mutant(
        "an error beside the entries is one only by the name of `error`",
        f"{WORKER}/sayings.py",
        r'r"^[^:]*\berrors?\b"',
        r'r"^error(?: code)?\b"',
        WIRE,
    ),
    Mutant(
        "our own key, known there, is refused",
        f"{WORKER}/verdict_table.py",
        """        (Shape.JSON,),
        Action.DELIVERED,
        "",
        "Our own key""",
        """        (Shape.JSON,),
        Action.SPLIT,
        "",
        "Our own key""",
        WIRE,
    ),
    Mutant(
        "redirects are followed",
        f"{WORKER}/http_link/channel.py",
        "                    allow_redirects=False,\n",
        "                    allow_redirects=True,\n",
        WIRE,
        also=("self._session = _Session()", "self._session = requests.Session()"),
    ),
    Mutant(
        "the library below tries again by itself",
        f"{WORKER}/http_link/adapter.py",
        "super().__init__(max_retries=0)",
        "super().__init__(max_retries=urllib3.util.Retry(3, allowed_methods=None))",
        WIRE,
    ),
    Mutant(
        "an answer may be of any length",
        f"{WORKER}/http_link/bounded.py",
        "        if self._left < 0:\n",
        "        if False:\n",
        WIRE,
    ),
    # -- accounts -----------------------------------------------------------------------
    Mutant(
        "an outage of the accounts API counts as an unknown account",
        f"{WORKER}/accounts.py",
        "                self._link.failed(answer, now, sent_in=sent_in)\n",
        "                misses = 1 + (known.misses if known else 0)\n"
        "                self._outbox.set_account(tenant_id, Account(None, now, misses, now + 1))\n"
        "                self._link.failed(answer, now, sent_in=sent_in)\n",
        FLUSHER,
    ),
    Mutant(
        "what was given up is given up for ever, replayed or not",
        f"{WORKER}/payers.py",
        "        self._given_up.pop(question.tenant_id, None)\n",
        "",
        FLUSHER,
    ),
    Mutant(
        "a replay leaves an unknown tenant to its wait",
        f"{OUTBOX}/operations.py",
        "UPDATE accounts SET misses = 0, ask_again_at = NULL\n",
        "UPDATE accounts SET misses = 0\n",
        FLUSHER,
    ),
    Mutant(
        "the key of a corrected event is known with the wrong time",
        f"{OUTBOX}/boots.py",
        "[(seq,) for seq in corrected],",
        "[],",
        ("tests/integration/test_clocks.py",),
    ),
    Mutant(
        "unknown accounts are asked for without a pause",
        f"{WORKER}/accounts.py",
        "until = now + max(1, round(self._policy.wait_seconds(misses) * 1000))",
        "until = None",
        FLUSHER,
    ),
    # -- settling -----------------------------------------------------------------------
    Mutant(
        "a delivered event is counted twice when it is settled twice",
        f"{OUTBOX}/settling.py",
        "(len(gone), max((event.seq for event in gone), default=0), settlement.proves),",
        "(len(settlement.delivered), max((event.seq for event in gone), default=0),"
        " settlement.proves),",
        ("tests/integration/test_outbox_conformance.py",),
    ),
    Mutant(
        "the frontier passes events that nobody has looked at",
        f"{OUTBOX}/frontier.py",
        "SELECT e.seq - 1 FROM events",
        "SELECT e.seq FROM events",
        ("tests/integration/test_outbox_conformance.py",),
    ),
    # -- what operators do ----------------------------------------------------------------
    Mutant(
        "what was purged cannot be imported again",
        f"{OUTBOX}/letter_import.py",
        "    return not removed\n",
        "    return True\n",
        OPERATING,
    ),
    Mutant(
        "an imported letter is imported again once it is delivered",
        f"{OUTBOX}/letter_import.py",
        "        if known is None:\n            return False\n",
        "        return False\n",
        OPERATING,
    ),
    Mutant(
        "a purge forgets what makes an import new",
        f"{OUTBOX}/operations.py",
        "            forget_removed_keys(connection, gone)\n",
        "",
        OPERATING,
    ),
    Mutant(
        "the others follow whatever becomes of the canary",
        f"{WORKER}/cli/changes.py",
        "if not canary.is_delivered(outbox):",
        "if not (canary.is_delivered(outbox) or True):",
        OPERATING,
    ),
    Mutant(
        "a canary that is refused again is waited for",
        f"{WORKER}/cli/canary.py",
        'if state == "refused":',
        'if state == "nonsense":',
        OPERATING,
    ),
    Mutant(
        "an unanswered request is no risk of a duplicate",
        f"{WORKER}/cli/replay_plan.py",
        "is_refusal and not letter.unanswered:",
        "is_refusal:",
        OPERATING,
    ),
    Mutant(
        "a dead letter of the future is believed to be fresh",
        f"{WORKER}/cli/replay_plan.py",
        "return not 0 <= age_seconds < ",
        "return not age_seconds < ",
        OPERATING,
    ),
    Mutant(
        "replays are not counted",
        f"{OUTBOX}/operations.py",
        ", replays = replays + 1\n",
        "\n",
        OPERATING,
    ),
    # -- an outbox that moves --------------------------------------------------------
    Mutant(
        "the new place is in use before the old one is closed",
        "meter_lib/moving.py",
        "            destination.seal(contents.outbox_id)\n",
        "            destination.seal(contents.outbox_id)\n"
        "            destination.open(contents.outbox_id)\n",
        MOVING,
    ),
    Mutant(
        "the old place is not held while an outbox moves",
        "meter_lib/moving.py",
        "if not source.try_hold():",
        "if False:",
        MOVING,
    ),
    Mutant(
        "what was written is not counted",
        "meter_lib/moving.py",
        "if arrived != contents:",
        "if False:",
        MOVING,
    ),
    Mutant(
        "the events of the new place are written over",
        f"{OUTBOX}/arriving.py",
        "if there is not None and there[1]:",
        "if False:",
        MOVING,
    ),
    Mutant(
        "another outbox that is half-way is thrown away",
        f"{OUTBOX}/arriving.py",
        "if there is not None and there[0] != outbox_id:\n                raise",
        "if False:\n                raise",
        MOVING,
        ("if there is None or there[0] != outbox_id:", "if there is None:"),
    ),
    Mutant(
        "a new outbox is begun where one has moved away",
        f"{OUTBOX}/moved.py",
        "    if told is not None:\n        raise OutboxMoved(",
        "    if False:\n        raise OutboxMoved(",
        MOVING,
    ),
    Mutant(
        "a place that waits for an outbox is used",
        f"{OUTBOX}/moved.py",
        'if os.path.lexists(f"{path}{ARRIVED}"):',
        "if False:",
        MOVING,
    ),
    Mutant(
        "what is left in the log stays behind",
        f"{OUTBOX}/leaving_file.py",
        'if not is_empty or file_bytes(f"{self.path}-wal"):',
        "if False:",
        MOVING,
    ),
    # -- in a caller's own transaction --------------------------------------------------
    Mutant(
        "a caller's commit that failed comes back after a crash",
        f"{OUTBOX}/shared_file.py",
        "if accepted_events(connection) < promised_seq:",
        "if promised_seq < 0:",
        WITHIN,
    ),
    Mutant(
        "a commit under way is taken for damage of the log",
        f"{OUTBOX}/salvage/log_check.py",
        'ours.execute("BEGIN IMMEDIATE")',
        'ours.execute("BEGIN")',
        WITHIN,
    ),
    Mutant(
        "an event is recorded in a file that was replaced",
        f"{OUTBOX}/within.py",
        "    if _is_free(ours):\n",
        "    if not theirs:\n",
        WITHIN,
    ),
    Mutant(
        "an event is recorded by a connection that does not sync",
        f"{OUTBOX}/within.py",
        "if synchronous < _FULL:",
        "if synchronous < 0:",
        WITHIN,
    ),
    Mutant(
        "a refused post leaves a transaction open that holds up all others",
        f"{OUTBOX}/within.py",
        "if not is_theirs and theirs.in_transaction:",
        "if not theirs:",
        WITHIN,
    ),
    Mutant(
        "the log of a program that only posts within is never emptied",
        f"{OUTBOX}/shared_file.py",
        "                    empty_log(connection)\n",
        "                    pass\n",
        WITHIN,
    ),
    # -- straight to Kafka --------------------------------------------------------------
    Mutant(
        "what a killed worker had stored is stored again",
        f"{WORKER}/kafka_link/session.py",
        "        return record.fingerprint in self._stored\n",
        "        return not record\n",
        KAFKA,
    ),
    Mutant(
        "the position is not of the transaction",
        f"{WORKER}/kafka_link/session.py",
        """        attempt.make(
            lambda seconds: producer.send_offsets_to_transaction([position], self._group, seconds),
            self._serve,
        )
""",
        "        assert position\n",
        KAFKA,
    ),
    Mutant(
        "a position is believed that was never committed",
        f"{WORKER}/kafka_link/position.py",
        """    if at.offset < 0:
        return Position([], group, is_lost=False)
""",
        "    at.offset = max(consumer.get_watermark_offsets(TopicPartition(topic, 0))[1] - 1, 0)\n",
        KAFKA,
    ),
    Mutant(
        "a producer goes on after a record has failed",
        f"{WORKER}/kafka_link/backend.py",
        """missing in its sequence: the broker would take no more.
        self._session = None
""",
        """missing in its sequence: the broker would take no more.
""",
        KAFKA,
    ),
    Mutant(
        "records of an undone transaction count as delivered",
        f"{WORKER}/kafka_link/reports.py",
        "[Undecided() for _ in range(sent)]",
        "[Delivered() for _ in range(sent)]",
        KAFKA,
        (
            "from meter_worker.backend import Answered, ",
            "from meter_worker.backend import Answered, Delivered, ",
        ),
    ),
    Mutant(
        "a broker that is out of reach is a verdict",
        f"{WORKER}/kafka_link/reports.py",
        "        if code < 0 or code in TRANSACTION or words is not None:\n",
        "        if words is not None:\n",
        KAFKA,
    ),
    Mutant(
        "two requests at once of one producer",
        f"{WORKER}/assembly.py",
        "settings.max_in_flight if goes_on else 1",
        "settings.max_in_flight",
        KAFKA,
    ),
    Mutant(
        "events of several devices under one key are one",
        f"{WORKER}/kafka_link/records.py",
        '[value["tenant_id"], value["device_id"], value["idempotency_key"]]',
        '[value["idempotency_key"]]',
        KAFKA,
    ),
    Mutant(
        "a password is told",
        f"{WORKER}/kafka_link/configuration.py",
        '            text = text.replace(secret, "***")\n',
        "            pass\n",
        KAFKA,
    ),
    # -- what operators are told ----------------------------------------------------------
    Mutant(
        "every attempt of an outage is a line in the log",
        f"{WORKER}/log_events.py",
        "return times & (times - 1) == 0",
        "return times > 0",
        ("tests/unit/test_log_events.py",),
    ),
    Mutant(
        "a trouble that changes is told of each time",
        f"{WORKER}/links.py",
        "(changed and is_due)",
        "changed",
        ("tests/unit/test_log_events.py",),
    ),
    Mutant(
        "a replay undoes that there was a dead letter",
        f"{OUTBOX}/operations.py",
        "UPDATE outbox SET dead_events = dead_events - ?",
        "UPDATE outbox SET dead_events = dead_events - ?1,"
        " dead_lettered_events = dead_lettered_events - ?1",
        ("tests/integration/test_outbox_conformance.py",),
    ),
    Mutant(
        "a request that a small outbox has no room for is settled at once",
        f"{OUTBOX}/delivery.py",
        "            if part and size + added > most:",
        "            if part and size < 0:",
        ("tests/promises/test_p7_bounded.py",),
    ),
    # -- embedding ------------------------------------------------------------------------
    Mutant(
        "a cancelled task does not wait for what becomes of its event",
        "meter_lib/pool.py",
        "            cancellation = cancelled\n",
        "            raise\n",
        ("tests/integration/test_event_loops.py",),
    ),
    Mutant(
        "a call that raises is counted",
        "meter_lib/metering.py",
        "        result = function(*args, **kwargs)\n",
        "        try:\n            result = function(*args, **kwargs)\n"
        "        except KeyError:\n            self._post(*self._ids, 1)\n            raise\n",
        ("tests/integration/test_metered.py",),
    ),
    Mutant(
        "a child of a silent fork goes on with what is its parent's",
        f"{OUTBOX}/forking.py",
        "if self._process != os.getpid():",
        "if not self._process:",
        ("tests/integration/test_forking_servers.py",),
    ),
    Mutant(
        "a post wakes a flusher that has just sent a request",
        f"{WORKER}/idling.py",
        "            return left\n",
        "            pass\n",
        ("tests/integration/test_idling.py",),
    ),
    # -- on a server ----------------------------------------------------------------------
    Mutant(
        "a late event for which there was no room is passed by",
        "meter_lib/_postgres/delivery.py",
        "if is_past_the_late or not cursor.rowcount:",
        "if is_past_the_late or len(events) == before:",
        SERVER_POSTS,
    ),
    Mutant(
        "late events are not looked for",
        "meter_lib/_postgres/delivery.py",
        '"seen": self._seen or snapshot',
        '"seen": snapshot',
        SERVER_POSTS,
    ),
    Mutant(
        "a key that was recorded meanwhile is recorded again",
        "meter_lib/_postgres/keys.py",
        "    return cursor.rowcount == len(rows)\n",
        "    return True\n",
        SERVER_POSTS,
    ),
    Mutant(
        "a caller's transaction counts in a row that others change",
        "meter_lib/_postgres/recorder.py",
        "(count if sees_others else count_by_itself)(cursor, more)",
        "count(cursor, more)",
        SERVER_POSTS,
    ),
    Mutant(
        "what waits for a key takes posts of other threads with it",
        "meter_lib/_postgres/recorder.py",
        "        if not _is_locked(error) or len(keyless) == len(posts):\n",
        "        if True:\n",
        SERVER_POSTS,
    ),
    Mutant(
        "the outbox of another database takes a caller's event",
        "meter_lib/_postgres/recorder.py",
        "        if lives == [life]:\n",
        "        if lives:\n",
        SERVER_POSTS,
    ),
)
