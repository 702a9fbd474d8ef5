"""Codes of errors: librdkafka's own are negative, Kafka's are not.

confluent_kafka has the first as attributes with an underscore, which are nobody's to use.
"""

from __future__ import annotations

__all__ = [
    "ALL_BROKERS_DOWN",
    "GONE",
    "HOPELESS",
    "INVALID_DIFFERENT_RECORD",
    "MISSING",
    "MSG_TIMED_OUT",
    "NO_TRANSACTIONS",
    "OTHER_PRODUCER",
    "PASSING",
    "RIGHTS",
    "TAKEN_BACK",
    "TRANSACTION",
]

ALL_BROKERS_DOWN = -187
MSG_TIMED_OUT = -192
INVALID_DIFFERENT_RECORD = -138
"""The broker refused the batch for another record in it."""

HOPELESS = frozenset({-169, -181})
"""_AUTHENTICATION, _SSL: to connect again would be in vain."""
MISSING = frozenset({-188, -190})
"""_UNKNOWN_TOPIC, _UNKNOWN_PARTITION: what a broker calls 3."""
TAKEN_BACK = frozenset({-151, -152})
"""_PURGE_INFLIGHT, _PURGE_QUEUE: of records whose transaction is undone."""
GONE = frozenset({-140, 1})
"""_AUTO_OFFSET_RESET, OFFSET_OUT_OF_RANGE: there is no such record any more."""
PASSING = frozenset({-195, -185, -166, 14, 15, 16, 51, 88})
"""_TRANSPORT, _TIMED_OUT, _TIMED_OUT_QUEUE, COORDINATOR_LOAD_IN_PROGRESS,
COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, CONCURRENT_TRANSACTIONS, UNSTABLE_OFFSET_COMMIT:
the call is to be made again."""

RIGHTS = frozenset({29, 30, 31, 53, 58, 65})
OTHER_PRODUCER = frozenset({-144, 47, 90})
"""_FENCED, INVALID_PRODUCER_EPOCH, PRODUCER_FENCED."""
NO_TRANSACTIONS = frozenset({-165, 35})
"""_UNSUPPORTED_FEATURE, UNSUPPORTED_VERSION."""
TRANSACTION = frozenset({45, 46, 48, 49, 50, 51, 52, 59})
"""The transaction or its producer is lost: no event is to blame."""
