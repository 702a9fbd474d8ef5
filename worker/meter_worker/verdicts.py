"""What an answer means: status, headers and body in, outcome out. Walks the verdict tables.

A status alone says little: records may have failed within a 200 and been stored
within a 422, so every entry is read, and the tables say what it all means together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meter_worker.answers import (
    Answer,
    Dialect,
    Shape,
    account_answer,
    delivery_answer,
    retry_after_seconds,
    shown,
)
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Ambiguous,
    Answered,
    Delivered,
    Refused,
    Rejected,
    Retriable,
    Unavailable,
    Undecided,
)
from meter_worker.exhaustive import assert_never
from meter_worker.record_table import RECORD_ROWS
from meter_worker.verdict_rows import Action, RecordAction
from meter_worker.verdict_table import ACCOUNT_ROWS, DELIVERY_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meter_worker.answers import Entry
    from meter_worker.backend import AccountAnswer, Outcome, Verdict
    from meter_worker.verdict_rows import AnswerRow, RecordRow

__all__ = [
    "Judgement",
    "judge_account",
    "judge_delivery",
    "judge_entries",
    "judgement_of_account",
    "judgement_of_delivery",
]


class Judgement(NamedTuple):
    """An outcome, and the names of the rows that led to it."""

    outcome: Outcome
    rows: tuple[str, ...]


def judge_delivery(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    sent: int,
    now: int,
    dialect: str = "auto",
) -> Outcome:
    """Return what became of a request of `sent` records that was answered like this.

    `now` (milliseconds since the epoch) is for a `Retry-After` given as a date;
    `dialect` names the proxy, where it is not to be told by the answer's shape.
    """
    return judgement_of_delivery(status, headers, body, sent=sent, now=now, dialect=dialect).outcome


def judgement_of_delivery(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    sent: int,
    now: int,
    dialect: str = "auto",
) -> Judgement:
    """Return what `judge_delivery` does, and by which rows of the tables."""
    pinned = None if dialect == "auto" else Dialect(dialect)
    answer = delivery_answer(status, body, sent=sent, pinned=pinned)
    row = _first(DELIVERY_ROWS, answer, pinned)
    outage = _outage(row, answer, retry_after_seconds(headers, now))
    match row.action:
        case Action.READ | Action.READ_RIGHTS:
            records = [_record_row(entry) for entry in answer.entries if entry.failed]
            rows = (row.name, *dict.fromkeys(one.name for one in records))
            return Judgement(_read(row, answer, records, outage), rows)
        case Action.DELIVERED:
            outcome: Outcome = Answered((Delivered(),) * sent)
        case Action.SINGLES | Action.ALWAYS_SINGLES:
            outcome = Ambiguous(
                f"{len(answer.entries)} entries for {sent} records: {answer.detail}",
                lasting=row.action is Action.ALWAYS_SINGLES,
            )
        case Action.SPLIT:
            outcome = Refused("rejected", answer.detail)
        case Action.TOO_LARGE:
            outcome = Refused("too_large", answer.detail)
        case Action.KEY_CONFLICT:
            outcome = Refused("key_conflict", answer.detail)
        case Action.RETRY | Action.PAUSE:
            outcome = outage
        case Action.FOUND | Action.UNKNOWN:
            raise AssertionError(f"row {row.name!r} speaks of accounts")
        case _:
            assert_never(row.action)
    return Judgement(outcome, (row.name,))


def judge_entries(entries: Sequence[Entry]) -> Outcome:
    """Return what became of records that all failed, of which a broker itself said this."""
    answer = Answer(200, len(entries), b"", Shape.FAILED, tuple(entries))
    records = [_record_row(entry) for entry in entries]
    return _read(_first(DELIVERY_ROWS, answer, None), answer, records, Unavailable(""))


def judge_account(
    status: int, headers: Mapping[str, str], body: bytes, *, now: int
) -> AccountAnswer:
    """Return what the accounts API said: an account, that there is none, or nothing of use."""
    return judgement_of_account(status, headers, body, now=now)[0]


def judgement_of_account(
    status: int, headers: Mapping[str, str], body: bytes, *, now: int
) -> tuple[AccountAnswer, str]:
    """Return what `judge_account` does, and the name of the row that led to it."""
    answer = account_answer(status, body)
    row = _first(ACCOUNT_ROWS, answer, None)
    if row.action is Action.FOUND and answer.customer_id is not None:
        return AccountFound(answer.customer_id), row.name
    if row.action is Action.UNKNOWN:
        return AccountUnknown(answer.detail), row.name
    return _outage(row, answer, retry_after_seconds(headers, now)), row.name


def _first(rows: Sequence[AnswerRow], answer: Answer, pinned: Dialect | None) -> AnswerRow:
    # The last row of each table matches whatever is left.
    return next(row for row in rows if row.matches(answer, pinned))


def _record_row(entry: Entry) -> RecordRow:
    return next(row for row in RECORD_ROWS if row.matches(entry))


def _outage(row: AnswerRow, answer: Answer, retry_after: float | None) -> Unavailable:
    detail = f"{row.words}: {answer.detail}" if row.words else answer.detail
    return Unavailable(detail, retry_after, wants_an_operator=row.action is not Action.RETRY)


def _read(
    row: AnswerRow, answer: Answer, records: Sequence[RecordRow], outage: Unavailable
) -> Outcome:
    """Return the verdict on each record; `records` are the rows of the entries that failed."""
    if not records:
        return Answered((Delivered(),) * len(answer.entries))
    details = [_detail(entry) for entry in answer.entries if entry.failed]
    if len(records) == answer.sent and all(record.all_pause for record in records):
        return outage._replace(
            detail=f"check the topic, it is missing or invalid: {details[0]}",
            wants_an_operator=True,
        )
    lacks_rights: str | None = None
    verdicts: list[Verdict] = []
    failures = iter(zip(records, details, strict=True))
    for entry in answer.entries:
        if not entry.failed:
            verdicts.append(Delivered())
            continue
        record, detail = next(failures)
        if row.action is Action.READ_RIGHTS or record.action is RecordAction.UNDECIDED:
            lacks_rights = detail
            verdicts.append(Undecided())
        else:
            verdicts.append(_verdict(record, detail))
    if lacks_rights is None:
        return Answered(tuple(verdicts))
    words = f"the proxy may not write to its broker: {lacks_rights}"
    return Answered(tuple(verdicts), outage._replace(detail=words, wants_an_operator=True))


def _verdict(record: RecordRow, detail: str) -> Verdict:
    verdict: Verdict
    match record.action:
        case RecordAction.DELIVERED:
            verdict = Delivered()
        case RecordAction.RETRY:
            verdict = Retriable(detail)
        case RecordAction.REJECTED:
            verdict = Rejected("rejected", detail)
        case RecordAction.TOO_LARGE:
            verdict = Rejected("too_large", detail)
        case RecordAction.UNDECIDED:
            verdict = Undecided()
        case _:
            assert_never(record.action)
    return verdict


def _detail(entry: Entry) -> str:
    return shown(f"error_code {entry.code}: {entry.text}")
