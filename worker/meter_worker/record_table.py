"""What each entry with an error means, as data: the first row that matches wins.

No error code is looked at anywhere else. `verdict_page` prints these rows as `docs/verdicts.md`.
"""

from __future__ import annotations

from meter_worker.answers import Dialect
from meter_worker.sayings import EXISTS, TOO_LARGE
from meter_worker.verdict_rows import RecordAction, RecordRow

__all__ = ["RECORD_ROWS"]

RECORD_ROWS: tuple[RecordRow, ...] = (
    RecordRow(
        "record exists",
        None,
        None,
        RecordAction.DELIVERED,
        "Our own key is known there: an earlier attempt has arrived.",
        says=EXISTS,
    ),
    RecordRow(
        "record too large",
        None,
        (10, 18),
        RecordAction.TOO_LARGE,
        "Kafka: MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE.",
    ),
    RecordRow(
        "record too large by its words",
        None,
        None,
        RecordAction.TOO_LARGE,
        "Confluent's 50002 and Karapace's 1 tell it in words only.",
        says=TOO_LARGE,
    ),
    RecordRow(
        "rights at the broker",
        None,
        (29, 31, 53, 58, 40101, 40301),
        RecordAction.UNDECIDED,
        "The proxy may not write to its broker: no event is to blame.",
    ),
    RecordRow(
        "topic missing",
        None,
        (3, 404),
        RecordAction.RETRY,
        "Kafka's UNKNOWN_TOPIC_OR_PARTITION, Strimzi's 404: on some records only, stale metadata.",
        all_pause=True,
    ),
    RecordRow(
        "topic invalid",
        None,
        (17,),
        RecordAction.REJECTED,
        "Kafka: INVALID_TOPIC_EXCEPTION.",
        all_pause=True,
    ),
    RecordRow(
        "record rejected",
        None,
        (87, 50002),
        RecordAction.REJECTED,
        "Kafka's INVALID_RECORD, Confluent's error that is not retriable.",
    ),
    RecordRow(
        "record rejected, as documented",
        (Dialect.CONFLUENT,),
        (1,),
        RecordAction.REJECTED,
        "Confluent's documentation says 1 where its later code sends 50002.",
    ),
    RecordRow(
        "passing trouble",
        None,
        (2, 5, 6, 7, 13, 19, 20, 56, 89, 50003),
        RecordAction.RETRY,
        "Retriable by Kafka's protocol, or by name.",
    ),
    RecordRow(
        "Karapace's 1",
        (Dialect.KARAPACE,),
        (1,),
        RecordAction.RETRY,
        "It stands for almost everything, its own time-outs among it.",
    ),
    RecordRow(
        "Strimzi's 500",
        (Dialect.STRIMZI,),
        (500,),
        RecordAction.RETRY,
        "It stands for any error of its producer.",
    ),
    RecordRow(
        "unknown error",
        None,
        None,
        RecordAction.RETRY,
        "What nobody has described may well pass.",
    ),
)
