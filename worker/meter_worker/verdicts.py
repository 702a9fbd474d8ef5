"""What an answer means: status, headers and body in, outcome out. No status is judged elsewhere.

The protocol is the Kafka REST Proxy v2 (Confluent's, Karapace, Strimzi's bridge).
A status alone says little: records may have failed within a 200 and been stored
within a 422, so every entry of `offsets` is read, whatever the status.
"""

from __future__ import annotations

import email.utils
import json
from datetime import timezone
from typing import TYPE_CHECKING, Any

from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Answered,
    Delivered,
    Refused,
    Rejected,
    Retriable,
    Unavailable,
    Undecided,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_worker.backend import AccountAnswer, Outcome, Verdict

__all__ = ["judge_account", "judge_delivery", "shown"]

_LONGEST_DETAIL = 500
# Ours are a few dozen characters; whatever is longer is no id of a customer.
_LONGEST_CUSTOMER_ID = 255

# Per-record error codes: Kafka's own numbers, and those of the proxies' own.
_BROKER_AUTHORIZATION = frozenset({29, 31, 53, 58, 40101, 40301})
_TOO_LARGE = frozenset({10, 18})
_REJECTED = frozenset({17, 87, 50002})
# Karapace says 1 for what the broker refuses, but for its own time-outs as well.
_KARAPACE_ERROR = 1
_PASSING_TROUBLE = ("timed out", "timeout", "buffer full", "cancelled", "canceled")
_TOO_LARGE_TEXTS = ("maximum message size", "max.request.size", "recordtoolarge", "larger than")


def judge_delivery(
    status: int, headers: Mapping[str, str], body: bytes, *, sent: int, now: int
) -> Outcome:
    """Return what became of a request of `sent` records that was answered like this.

    `now` (milliseconds since the epoch) is for a `Retry-After` given as a date.
    """
    answer = _parsed(body)
    succeeded = 200 <= status < 300
    entries = answer.get("offsets") if isinstance(answer, dict) else None
    contradicts_itself = (
        succeeded and isinstance(answer, dict) and (answer.get("error_code") or answer.get("error"))
    )
    speaks_of_records = (succeeded and not contradicts_itself) or status in {400, 401, 403, 422}
    if speaks_of_records and isinstance(entries, list) and len(entries) == sent:
        return _judge_entries(entries, status)
    # With entries, but not one a record: some may be stored, and nobody knows which.
    if succeeded or (status in {400, 422} and isinstance(entries, list)):
        return Unavailable(
            f"HTTP {status}, but not the answer of a Kafka REST proxy to {sent} records: "
            f"{shown(body)}"
        )
    if status in {400, 422} and body.strip() and not body.lstrip().startswith(b"<"):
        return Refused("rejected", _detail(status, answer, body))
    if status == 413:
        return Refused("too_large", _detail(status, answer, body))
    return Unavailable(
        _detail(status, answer, body), retry_after_seconds=_retry_after(headers, now)
    )


def judge_account(
    status: int, headers: Mapping[str, str], body: bytes, *, now: int
) -> AccountAnswer:
    """Return what the accounts API said: an account, that there is none, or nothing of use."""
    answer = _parsed(body)
    if status == 200:
        account: Any = answer
        if isinstance(account, list):
            if not account:
                return AccountUnknown("HTTP 200 with an empty list")
            account = account[0]
        customer_id = account.get("id") if isinstance(account, dict) else None
        if _is_customer_id(customer_id):
            return AccountFound(json.dumps(customer_id, ensure_ascii=False))
        return Unavailable(f"HTTP 200, but no account with an id: {shown(body)}")
    # A gateway or a captive portal says 404 as well, but not in JSON.
    if status == 404 and isinstance(answer, dict):
        return AccountUnknown(_detail(status, answer, body))
    return Unavailable(
        _detail(status, answer, body), retry_after_seconds=_retry_after(headers, now)
    )


def _is_customer_id(value: object) -> bool:
    if isinstance(value, str):
        # A lone surrogate can be escaped in JSON, but neither stored nor sent as UTF-8.
        return 0 < len(value) <= _LONGEST_CUSTOMER_ID and not any(
            "\ud800" <= character <= "\udfff" for character in value
        )
    return isinstance(value, int) and not isinstance(value, bool) and 0 < abs(value) < 2**64


def _judge_entries(entries: list[Any], status: int) -> Outcome:
    verdicts: list[Verdict] = []
    outage: Unavailable | None = None
    for entry in entries:
        if not isinstance(entry, dict):
            return Unavailable(f"HTTP {status}, but an offsets entry is {shown(entry)}")
        code = entry.get("error_code")
        text = entry.get("error") or entry.get("message")
        if code is None and text is None:
            offset = entry.get("offset")
            if not isinstance(offset, int) or isinstance(offset, bool):
                return Unavailable(f"HTTP {status}, but an offsets entry is {shown(entry)}")
            verdicts.append(Delivered())
            continue
        if not isinstance(code, int | None):
            return Unavailable(f"HTTP {status}, but an offsets entry is {shown(entry)}")
        detail = f"error_code {code}: {shown(text)}"
        if status in {401, 403} or code in _BROKER_AUTHORIZATION:
            outage = Unavailable(f"the proxy may not write to its broker: {shown(detail)}")
            verdicts.append(Undecided())
        else:
            verdicts.append(_judge_error(code, str(text or "").lower(), shown(detail)))
    if status >= 300 and all(isinstance(verdict, Delivered) for verdict in verdicts):
        return Unavailable(f"HTTP {status}, but no error in any of its offsets entries")
    return Answered(tuple(verdicts), outage)


def _judge_error(code: int | None, text: str, detail: str) -> Verdict:
    if code in _TOO_LARGE or any(words in text for words in _TOO_LARGE_TEXTS):
        return Rejected("too_large", detail)
    if code in _REJECTED:
        return Rejected("rejected", detail)
    if code == _KARAPACE_ERROR and not any(words in text for words in _PASSING_TROUBLE):
        return Rejected("rejected", detail)
    # Unknown means: try again.
    return Retriable(detail)


def _retry_after(headers: Mapping[str, str], now: int) -> float | None:
    """Return the seconds that `Retry-After` asks for (RFC 9110, 10.2.3), or None."""
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, date.timestamp() - now / 1000)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _detail(status: int, answer: object, body: bytes) -> str:
    message = answer.get("message") if isinstance(answer, dict) else None
    return f"HTTP {status}: {shown(message or body)}"


def shown(value: object) -> str:
    """Return a value from outside in words fit for a log: one line, printable, not long."""
    if isinstance(value, bytes):
        value = value[: 2 * _LONGEST_DETAIL].decode("utf-8", "replace")
    text = value if isinstance(value, str) else json.dumps(value)
    text = text[: 2 * _LONGEST_DETAIL]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "…"
