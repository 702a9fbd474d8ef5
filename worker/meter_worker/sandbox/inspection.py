"""The /sandbox paths: look at what was stored and asked, empty it, set faults and heal them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from meter_worker.sandbox.bodies import decoded_body, parsed_json
from meter_worker.sandbox.exchange import (
    JSON,
    Answer,
    Refused,
    error_answer,
    json_answer,
    plain_answer,
)
from meter_worker.sandbox.fault_board import faults_from
from meter_worker.sandbox.produce import EVERYBODY, Subject
from meter_worker.sandbox.store import times_by_key

if TYPE_CHECKING:
    from meter_worker.sandbox.exchange import Request
    from meter_worker.sandbox.fault_board import FaultBoard
    from meter_worker.sandbox.request_log import RequestLog
    from meter_worker.sandbox.store import Store

PREFIX = "/sandbox/"
_QUERY = (*Subject._fields, "limit", "fields")
_METHODS = {
    "records": ("GET", "DELETE"),
    "requests": ("GET",),
    "faults": ("GET", "PUT", "DELETE"),
}


class Inspection:
    """Answers the /sandbox paths from the store, the request log and the fault board."""

    def __init__(self, store: Store, log: RequestLog, faults: FaultBoard) -> None:
        self._store = store
        self._log = log
        self._faults = faults

    def answer(self, request: Request) -> Answer:
        """Answer one request below /sandbox/; raises `Refused` where it cannot be meant."""
        place = request.path.removeprefix(PREFIX).rstrip("/")
        if place not in _METHODS:
            return plain_answer(404)
        if request.method not in _METHODS[place]:
            return plain_answer(405)
        if place == "requests":
            return json_answer(200, [logged.as_json() for logged in self._log.requests()])
        if place == "records":
            if request.method == "DELETE":
                return json_answer(200, {"removed": self._store.clear()})
            return json_answer(200, self._records(request.query))
        if request.method == "PUT":
            self._put_faults(request)
        elif request.method == "DELETE":
            self._faults.replace([])
        return json_answer(200, self._faults.as_json())

    def _records(self, query: str) -> dict[str, Any]:
        asked = _asked(query)
        wanted = Subject(*map(asked.get, Subject._fields))
        is_summary = asked.get("fields") == "summary"
        if is_summary and wanted == EVERYBODY:
            return _summary(*self._store.totals)
        records = self._store.records(wanted)
        times = times_by_key(records)
        summary = _summary(len(records), len(times))
        if is_summary:
            return summary
        limit = int(asked.get("limit", len(records)))
        newest = records[max(len(records) - limit, 0) :]
        return summary | {"keys": times, "records": [record.as_json() for record in newest]}

    def _put_faults(self, request: Request) -> None:
        encoding = request.headers.get("content-encoding", "")
        given = parsed_json(decoded_body(request.body, encoding))
        try:
            self._faults.replace(faults_from(given))
        except ValueError as wrong:
            raise _refused(str(wrong)) from None


def _summary(count: int, distinct: int) -> dict[str, Any]:
    return {"count": count, "distinct": distinct, "duplicates": count - distinct}


def _asked(query: str) -> dict[str, str]:
    """Give the members of the query; those left blank mean nothing."""
    asked = dict(parse_qsl(query))
    for name in asked:
        if name not in _QUERY:
            raise _refused(f"unknown parameter {name!r}; there are {', '.join(_QUERY)}")
    if not asked.get("limit", "0").isdecimal():
        raise _refused("limit is a number, 0 or more")
    if asked.get("fields", "summary") != "summary":
        raise _refused("fields can only be summary")
    return asked


def _refused(message: str) -> Refused:
    return Refused(error_answer(400, message, content_type=JSON))
