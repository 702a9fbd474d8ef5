"""The backend that is Kafka itself: requests in, outcomes out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException

from meter_worker.backend import Answered, Delivered, Interrupted, Unavailable
from meter_worker.kafka_link.attempt import Attempt, Complaints, KafkaFailed, KafkaInterrupted
from meter_worker.kafka_link.records import Record
from meter_worker.kafka_link.reports import judge_reports
from meter_worker.kafka_link.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_worker.backend import Outcome, Request
    from meter_worker.kafka_link.configuration import KafkaConfiguration

__all__ = ["KafkaBackend"]


class KafkaBackend:
    """Stores each request in a transaction, with the position of its outbox.

    What an earlier transaction has stored, of this process or another, is answered as
    delivered and not stored again. One request is under way at a time.
    """

    def __init__(self, configuration: KafkaConfiguration) -> None:
        """Set up; nothing is connected yet."""
        self._configuration = configuration
        self._one_at_a_time = threading.Lock()
        self._interrupted = threading.Event()
        self._complaints = Complaints()
        self._session: Session | None = None

    def deliver(self, request: Request) -> Outcome:
        """Send the request once and return what became of it."""
        records = [Record.of(text) for text in request.records]
        with self._one_at_a_time:
            try:
                return self._deliver(records)
            except KafkaInterrupted:
                self._leave()
                return Interrupted()
            except KafkaFailed as error:
                outage = self._outage(error)
            except KafkaException as error:
                outage = self._outage(KafkaFailed.of(error.args[0]))
            # Whatever it was, the next session sees what is stored.
            self._leave()
        return outage

    def interrupt(self) -> None:
        """Break off what is under way; every further `deliver` is interrupted too."""
        self._interrupted.set()
        if self._one_at_a_time.acquire(blocking=False):
            # Otherwise whoever is at it does the same.
            self._session = None
            self._one_at_a_time.release()

    def _deliver(self, records: Sequence[Record]) -> Outcome:
        if self._session is not None and not self._session.is_alive():
            self._session = None
        self._complaints.forget()
        attempt = Attempt(
            self._configuration.transaction_seconds, self._interrupted, self._complaints
        )
        attempt.look()
        outbox_id = records[0].outbox_id
        if self._session is None or self._session.outbox_id != outbox_id:
            self._session = Session(self._configuration, outbox_id, attempt, self._complaints)
        session = self._session
        places = [place for place, record in enumerate(records) if not session.has(record)]
        failed = session.store([records[place] for place in places], attempt) if places else {}
        if not failed:
            return Answered(tuple(Delivered() for _ in records))
        # The numbers of what was undone are missing in its sequence: the broker would take no more.
        self._session = None
        outcome = judge_reports(failed, len(places))
        if not isinstance(outcome, Answered):
            return outcome
        verdicts = dict(zip(places, outcome.verdicts, strict=True))
        return outcome._replace(
            verdicts=[verdicts.get(place, Delivered()) for place in range(len(records))]
        )

    def _outage(self, failure: KafkaFailed) -> Unavailable:
        return Unavailable(
            self._configuration.without_secrets(str(failure)),
            timed_out=failure.timed_out,
            wants_an_operator=failure.wants_an_operator,
        )

    def _leave(self) -> None:
        if self._session is not None:
            self._session.leave()
            self._session = None
