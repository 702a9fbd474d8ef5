"""What a struck request is answered with, where it is answered at all. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meter_worker.sandbox.exchange import JSON, KAFKA_JSON, Answer, error_answer, json_answer
from meter_worker.sandbox.produce import entries_answer

if TYPE_CHECKING:
    from meter_worker.sandbox.fault_board import Api
    from meter_worker.sandbox.faults import Garbled, Redirect, Refuse, Throttle

_LOGIN_PAGE = """\
<!DOCTYPE html>
<html><head><title>Welcome to the guest network</title></head>
<body><form method="post" action="/login"><input name="room"><button>Connect</button></form></body>
</html>
"""


def refusal(fault: Refuse, api: Api) -> Answer:
    """Give the error that was asked for, as this API writes its errors."""
    return error_answer(
        fault.status, fault.message, error_code=fault.error_code, content_type=content_type(api)
    )


def throttled(fault: Throttle, api: Api) -> Answer:
    """Give 429, with Retry-After where the fault has one."""
    answer = error_answer(429, "HTTP 429 Too Many Requests", content_type=content_type(api))
    if fault.retry_after is None:
        return answer
    return replace(answer, headers=(("Retry-After", str(fault.retry_after)),))


def login_page() -> Answer:
    """Give what a captive portal gives to whatever is asked."""
    return Answer(200, "text/html; charset=utf-8", _LOGIN_PAGE.encode())


def redirected(fault: Redirect) -> Answer:
    """Give 302 to the fault's place."""
    return Answer(302, "text/html; charset=utf-8", b"", (("Location", fault.location),))


def garbled(fault: Garbled, api: Api, entries: list[dict[str, object]]) -> Answer:
    """Give 200 and a spoilt body; `entries` are those that a whole answer would have."""
    if fault.how == "text":
        return Answer(200, content_type(api), b"Everything is fine.")
    if fault.how == "empty":
        return Answer(200, content_type(api), b"")
    if fault.how == "missing_offsets":
        return json_answer(200, {}, content_type(api))
    if fault.how == "fewer_offsets":
        return entries_answer(entries[:-1]) if api == "events" else json_answer(200, [])
    whole = entries_answer(entries).body if api == "events" else b'{"id":"cust-0123456789ab"}'
    return Answer(200, content_type(api), whole[: len(whole) // 2], promised_bytes=len(whole))


def content_type(api: Api) -> str:
    """Give the content type that this API's answers have."""
    return KAFKA_JSON if api == "events" else JSON
