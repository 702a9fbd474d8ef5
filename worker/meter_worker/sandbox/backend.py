"""One request in, its outcome out: routing, faults, storing. Knows no socket and no thread."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from meter_worker.exhaustive import assert_never
from meter_worker.sandbox import accounts, fault_answers, faults, inspection, produce
from meter_worker.sandbox.exchange import (
    Answer,
    Refused,
    Reset,
    Stall,
    plain_answer,
)
from meter_worker.sandbox.fault_board import FaultBoard
from meter_worker.sandbox.request_log import RequestLog
from meter_worker.sandbox.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from meter_worker.sandbox.exchange import Outcome, Request
    from meter_worker.sandbox.fault_board import Api

_TOPIC_PATH = re.compile(r"/topics/([^/]+)/?")


@dataclass(frozen=True, slots=True)
class Terms:
    """What this sandbox knows and asks for."""

    topic: str
    api_key: str | None
    unknown_tenants: Container[str]
    accounts_as_list: bool


@dataclass(frozen=True, slots=True)
class _Call:
    """A request understood: for which API, about whom, and its answer once that is certain."""

    api: Api
    subjects: Sequence[produce.Subject]
    answer: Answer | None = None
    records: Sequence[produce.ProduceRecord] = ()


class LocalBackend:
    """The events API, the accounts API and the /sandbox paths over one store. Thread-safe."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.store = Store()
        self.log = RequestLog()
        self.faults = FaultBoard()
        self._inspection = inspection.Inspection(self.store, self.log, self.faults)

    def outcome(self, request: Request, pause: Callable[[float], bool]) -> Outcome:
        """Carry the request out and say what its client is to get.

        `pause` waits for so many seconds, and gives False where the sandbox stops meanwhile:
        nothing is stored then.
        """
        if request.path.startswith(inspection.PREFIX):
            try:
                return self._inspection.answer(request)
            except Refused as refused:
                return refused.answer
        call = self._understood(request)
        logged = self.log.add(request, records=len(call.records))
        fault = self.faults.strike(call.api, call.subjects, call.records)
        outcome = self._struck(fault, call, request, pause)
        if isinstance(outcome, Answer):
            logged.status = outcome.status
        return outcome

    def _understood(self, request: Request) -> _Call:
        asked = accounts.account_path(request.path)
        if asked is not None:
            answer = accounts.account_answer(
                request,
                asked,
                api_key=self._terms.api_key,
                unknown=self._terms.unknown_tenants,
                as_list=self._terms.accounts_as_list,
            )
            return _Call("accounts", [produce.Subject(asked.tenant, None, None)], answer)
        topic_path = _TOPIC_PATH.fullmatch(request.path)
        if topic_path is None:
            return _Call("other", [], plain_answer(404))
        sender = produce.sender_of(request.headers)
        if request.method != "POST":
            return _Call("events", [sender], plain_answer(405))
        try:
            records = produce.read_records(request, unquote(topic_path[1]), self._terms.topic)
        except Refused as refused:
            return _Call("events", [sender], refused.answer)
        return _Call("events", [record.subject for record in records], records=records)

    def _struck(  # noqa: C901, PLR0912, RET503 - one case for each fault, and no more
        self,
        fault: faults.Behaviour | None,
        call: _Call,
        request: Request,
        pause: Callable[[float], bool],
    ) -> Outcome:
        match fault:
            case None:
                return self._answer(call, request)
            case faults.Down():
                return Reset()
            case faults.Slow(seconds):
                return self._answer(call, request) if pause(seconds) else Reset()
            case faults.Stall():
                return Stall()
            case faults.Refuse():
                return fault_answers.refusal(fault, call.api)
            case faults.Throttle():
                return fault_answers.throttled(fault, call.api)
            case faults.DropReply():
                self._answer(call, request)
                return Reset()
            case faults.CaptivePortal():
                return fault_answers.login_page()
            case faults.Redirect():
                return fault_answers.redirected(fault)
            case faults.Garbled():
                entries = self._store(call, request) if fault.stored else _made_up(call)
                return fault_answers.garbled(fault, call.api, entries)
            case faults.RejectRecords():
                return produce.entries_answer(self._store(call, request, fault))
            case faults.RefuseRecords():
                return produce.invalid_format()
            case _:
                assert_never(fault)

    def _answer(self, call: _Call, request: Request) -> Answer:
        return call.answer or produce.entries_answer(self._store(call, request))

    def _store(
        self, call: _Call, request: Request, rejecting: faults.RejectRecords | None = None
    ) -> list[dict[str, object]]:
        """Store what can be stored of a call, and give one entry for each of its records."""
        errors: list[produce.RecordError | None] = []
        for record in call.records:
            error = produce.partition_error(record)
            if rejecting is not None and rejecting.matches(record):
                error = produce.RecordError(rejecting.error_code, rejecting.error)
            errors.append(error)
        sound = [
            record for record, error in zip(call.records, errors, strict=True) if error is None
        ]
        positions = self.store.append(self._terms.topic, sound, request)
        return produce.entries_for(call.records, errors, positions)


def _made_up(call: _Call) -> list[dict[str, object]]:
    return [{"offset": offset, "partition": 0} for offset in range(len(call.records))]
