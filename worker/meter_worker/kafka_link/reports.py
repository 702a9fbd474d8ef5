"""What delivery reports and errors of the client mean. Codes of brokers go by the record table.

Records travel in transactions: where one failed, none is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meter_worker.answers import Entry
from meter_worker.backend import Answered, Refused, Rejected, Unavailable, Undecided
from meter_worker.kafka_link.codes import (
    INVALID_DIFFERENT_RECORD,
    MISSING,
    MSG_TIMED_OUT,
    NO_TRANSACTIONS,
    OTHER_PRODUCER,
    RIGHTS,
    TRANSACTION,
)
from meter_worker.verdicts import judge_entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_worker.backend import Outcome, Verdict

__all__ = ["Report", "judge_reports", "words_for"]

_UNKNOWN_TOPIC = 3  # UNKNOWN_TOPIC_OR_PARTITION, in the words of a broker


class Report(NamedTuple):
    """An error, of a record or of a call."""

    code: int
    """Kafka's, or librdkafka's own where it is negative."""
    text: str


def words_for(report: Report) -> str | None:
    """Return what an operator has to know, or None where it tells enough itself."""
    if report.code in RIGHTS:
        return f"check the rights at the broker, and METER_KAFKA_CONFIG: {report.text}"
    if report.code in OTHER_PRODUCER:
        return f"another worker has taken over, with this outbox or a copy of it: {report.text}"
    if report.code in NO_TRANSACTIONS:
        return f"the broker knows no transactions, which delivery needs: {report.text}"
    return None


def judge_reports(failed: Mapping[int, Report], sent: int) -> Outcome:
    """Return what became of so many records whose transaction was undone.

    `failed` are the reports of those to blame, by their place.
    """
    to_judge: dict[int, Report] = {}
    for place, report in failed.items():
        code = _UNKNOWN_TOPIC if report.code in MISSING else report.code
        if report.code == INVALID_DIFFERENT_RECORD:
            continue
        words = words_for(report)
        if code < 0 or code in TRANSACTION or words is not None:
            return Unavailable(
                words or f"error_code {report.code}: {report.text}",
                timed_out=report.code == MSG_TIMED_OUT,
                wants_an_operator=words is not None,
            )
        to_judge[place] = Report(code, report.text)
    if not to_judge:
        # Which record it was has not been said.
        return Unavailable(next(iter(failed.values())).text)
    entries = [
        Entry(failed=True, code=report.code, text=report.text) for report in to_judge.values()
    ]
    outcome = judge_entries(entries)
    if not isinstance(outcome, Answered):
        return outcome
    verdicts: list[Verdict] = [Undecided() for _ in range(sent)]
    for place, verdict in zip(to_judge, outcome.verdicts, strict=True):
        verdicts[place] = verdict
        if sent > 1 and isinstance(verdict, Rejected) and verdict.reason == "too_large":
            # It may be what they are together.
            return Refused("too_large", verdict.detail)
    return outcome._replace(verdicts=verdicts)
