"""What each answer means, as data: the first row that matches wins.

No status is looked at anywhere else. `verdict_page` prints these rows as `docs/verdicts.md`.
"""

from __future__ import annotations

from meter_worker.answers import Dialect, Shape
from meter_worker.sayings import AN_ERROR, EXISTS, IN_USE, REUSED
from meter_worker.verdict_rows import Action, AnswerRow

__all__ = ["ACCOUNT_ROWS", "DELIVERY_ROWS"]

_SUCCESS = range(200, 300)
_MISCOUNTED = (Shape.PARTITIONS, Shape.FAILED_PARTITIONS, Shape.OTHER_NUMBER)
_WITH_ENTRIES = (Shape.SOUND, Shape.FAILED, *_MISCOUNTED)

_OUTAGES: tuple[AnswerRow, ...] = (
    AnswerRow(
        "redirect",
        range(300, 400),
        None,
        Action.PAUSE,
        "redirected (a login page, or the URL has moved)",
        "Never followed: a POST becomes a GET, and a login page answers 200.",
    ),
    AnswerRow(
        "credentials",
        (401, 403),
        None,
        Action.PAUSE,
        "check the credentials",
        "A fault of the configuration; a proxy whose broker is away says 403 as well.",
    ),
    AnswerRow(
        "proxy credentials",
        (407,),
        None,
        Action.PAUSE,
        "an HTTP proxy on the way wants credentials",
        "The backend has not been reached.",
    ),
    AnswerRow(
        "configuration",
        (404, 405, 406, 410, 415, 501, 505),
        None,
        Action.PAUSE,
        "check the URL and the topic",
        "Says nothing of the events; a 404 passes once the topic has been made.",
    ),
    AnswerRow(
        "network login",
        (511,),
        None,
        Action.PAUSE,
        "the network wants a login",
        "RFC 6585: said by a captive portal, not by the backend.",
    ),
    AnswerRow(
        "come again",
        (408, 425, 429),
        None,
        Action.RETRY,
        "",
        "Asked to come again, at the time that Retry-After names.",
    ),
    AnswerRow(
        "unexpected",
        range(400, 500),
        None,
        Action.PAUSE,
        "unexpected status",
        "What is unknown is no word on an event.",
    ),
    AnswerRow(
        "server error",
        range(500, 600),
        None,
        Action.RETRY,
        "",
        "Some of it may be stored: the same records go again under the same keys.",
    ),
    AnswerRow(
        "no final status",
        None,
        None,
        Action.PAUSE,
        "not the answer of an HTTP server",
        "An interim status, or one that HTTP does not have.",
    ),
)

DELIVERY_ROWS: tuple[AnswerRow, ...] = (
    AnswerRow(
        "contradiction",
        _SUCCESS,
        _WITH_ENTRIES,
        Action.PAUSE,
        "entries beside an error, not the answer of a Kafka REST proxy",
        "What contradicts itself is believed in nothing.",
        says=AN_ERROR,
    ),
    AnswerRow(
        "success",
        _SUCCESS,
        (Shape.SOUND,),
        Action.READ,
        "",
        "The only word for stored: one entry a record, with an offset and no error.",
    ),
    AnswerRow(
        "partial failure in a success",
        _SUCCESS,
        (Shape.FAILED,),
        Action.READ,
        "",
        "Confluent, Strimzi and Redpanda answer 200 whatever became of each record.",
    ),
    AnswerRow(
        "one entry a partition",
        _SUCCESS,
        (Shape.PARTITIONS,),
        Action.DELIVERED,
        "",
        "Redpanda groups its answer by partition. Believed only where it is named.",
        pinned=Dialect.REDPANDA,
    ),
    AnswerRow(
        "one entry a partition, not named",
        _SUCCESS,
        (Shape.PARTITIONS,),
        Action.ALWAYS_SINGLES,
        "",
        "Likely Redpanda: every request of several records would be answered like this.",
        alone=False,
    ),
    AnswerRow(
        "miscounted success",
        _SUCCESS,
        _MISCOUNTED,
        Action.SINGLES,
        "",
        "Some records are stored, but not which; an answer to one record can be told.",
        alone=False,
    ),
    AnswerRow(
        "not Kafka REST",
        _SUCCESS,
        None,
        Action.PAUSE,
        "not the answer of a Kafka REST proxy (a captive portal, or a wrong URL)",
        "RFC 9110 does not say that a 2xx stores anything.",
    ),
    AnswerRow(
        "error without an error",
        (400, 401, 403, 409, 413, 422),
        (Shape.SOUND,),
        Action.PAUSE,
        "an error status over entries without an error",
        "A refusal of which every entry is sound contradicts itself.",
    ),
    AnswerRow(
        "partial failure",
        (400, 422),
        (Shape.FAILED,),
        Action.READ,
        "",
        "Karapace: the records without an error are stored, whatever the status.",
    ),
    AnswerRow(
        "partial failure for want of rights",
        (401, 403),
        (Shape.FAILED,),
        Action.READ_RIGHTS,
        "the proxy may not write to its broker",
        "Confluent: one error of rights sets the status; the others are stored.",
    ),
    AnswerRow(
        "miscounted failure",
        (400, 422),
        _MISCOUNTED,
        Action.SINGLES,
        "",
        "As for a success: some may be stored, but not which.",
        alone=False,
    ),
    AnswerRow(
        "key conflict",
        (400, 409, 422),
        (Shape.JSON,),
        Action.KEY_CONFLICT,
        "",
        "The Idempotency-Key was used for other content: never delivered by trying again.",
        says=REUSED,
    ),
    AnswerRow(
        "key in use",
        (409,),
        None,
        Action.RETRY,
        "",
        "The first request with this key is still under way.",
        says=IN_USE,
    ),
    AnswerRow(
        "exists",
        (400, 409, 422),
        (Shape.JSON,),
        Action.DELIVERED,
        "",
        "Our own key is known there: an earlier attempt has arrived.",
        says=EXISTS,
        alone=True,
    ),
    AnswerRow(
        "one of them exists",
        (400, 409, 422),
        (Shape.JSON,),
        Action.SPLIT,
        "",
        "Which one is told once it stands alone.",
        says=EXISTS,
        alone=False,
    ),
    AnswerRow(
        "too large",
        (413,),
        None,
        Action.TOO_LARGE,
        "",
        "The proxy's limit, or that of a gateway before it: nothing was stored.",
    ),
    AnswerRow(
        "refused",
        (400, 422),
        (Shape.JSON, Shape.TEXT),
        Action.SPLIT,
        "",
        "Checked before anything is stored; one bad record must not hurt the others.",
    ),
    AnswerRow(
        "refused, but not by a proxy",
        (400, 422),
        None,
        Action.PAUSE,
        "not the answer of a Kafka REST proxy (a gateway on the way)",
        "A page, or half an answer, is not the backend's word on an event.",
    ),
    *_OUTAGES,
)

ACCOUNT_ROWS: tuple[AnswerRow, ...] = (
    AnswerRow("account", (200,), (Shape.ACCOUNT,), Action.FOUND, "", "Its `id` is the customer's."),
    AnswerRow("no account", (200,), (Shape.EMPTY_LIST,), Action.UNKNOWN, "", "None in the list."),
    AnswerRow(
        "account not found",
        (404,),
        (Shape.OBJECT, Shape.ACCOUNT),
        Action.UNKNOWN,
        "",
        "In JSON it is the API's own word; a gateway or a captive portal sends a page.",
    ),
    AnswerRow(
        "not an account",
        _SUCCESS,
        None,
        Action.PAUSE,
        "not the answer of the accounts API (a captive portal, or a wrong URL)",
        "No account with a usable id says nothing about the tenant.",
    ),
    *_OUTAGES,
)
