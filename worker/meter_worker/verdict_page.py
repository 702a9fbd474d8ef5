"""The verdict tables as a page of Markdown: `python -m meter_worker.verdict_page` prints it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from meter_worker.record_table import RECORD_ROWS
from meter_worker.verdict_table import ACCOUNT_ROWS, DELIVERY_ROWS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from meter_worker.verdict_rows import AnswerRow, RecordRow

__all__ = ["page"]

_PAGE = """\
# What an answer means

Made from the tables in `worker/meter_worker/` by `make docs`; do not edit.

The protocol is the Kafka REST Proxy v2, spoken by Confluent's proxy, Karapace, Strimzi's bridge and
Redpanda's HTTP proxy. They share no word for success or failure, so an answer is judged by status,
shape and words together. In each table the first row that matches wins.

- **Outage**: the link pauses, no event is to blame, and whatever may have been stored goes again
  under the same keys. `Retry-After` is honoured in seconds and as a date, which is compared with
  the answer's own `Date`; at most for an hour. Where it **wants an operator**, waiting alone will
  hardly help.
- **Refused**, **rejected**: a dead letter only once it is proven: alone, after another event was
  accepted, alone again.
- **Retriable**: this record is tried again; only such answers count against `METER_MAX_ATTEMPTS`.
- No whole answer (connection refused or reset, no name, no TLS, late, cut short, over 4 MiB, no
  HTTP) is an outage, too; a certificate that is not trusted wants an operator.

## Answers to a delivery

{delivery}

## Entries with an error

The dialect is told by the entry: `message` is Strimzi's, offset -1 Redpanda's, a member `offset` or
`partition` or a code from 10000 Confluent's, all else Karapace's; or by `METER_DIALECT`. `null`
counts as absent, and so does the code 0 where no words come with it: it is Kafka's NONE. An entry
without an error needs an integer offset, -1 (Karapace: not waited for) or more. A code that is no
integer makes an entry none: no proxy writes names.

{records}

## Answers of the accounts API

{accounts}
"""


def page() -> str:
    """Return the tables as a page of Markdown."""
    return _PAGE.format(
        delivery=_markdown(
            ("answer", "status", "body", "sent", "means", "because"),
            map(_answer_cells, DELIVERY_ROWS),
        ),
        records=_markdown(
            ("error", "dialect", "code", "means", "because"), map(_record_cells, RECORD_ROWS)
        ),
        accounts=_markdown(
            ("answer", "status", "body", "means", "because"),
            ([*cells[:3], *cells[4:]] for cells in map(_answer_cells, ACCOUNT_ROWS)),
        ),
    )


def _answer_cells(row: AnswerRow) -> list[str]:
    body = "any" if row.shapes is None else " / ".join(shape.value for shape in row.shapes)
    if row.says is not None:
        body += f"; says *{row.says.meaning}*"
    if row.pinned is not None:
        body += f"; `METER_DIALECT={row.pinned.value}`"
    sent = "any" if row.alone is None else "1" if row.alone else "more"
    return [row.name, _numbers(row.statuses), body, sent, row.action.value, row.why]


def _record_cells(row: RecordRow) -> list[str]:
    dialects = "any" if row.dialects is None else ", ".join(one.value for one in row.dialects)
    codes = _numbers(row.codes) if row.says is None else f"says *{row.says.meaning}*"
    action = row.action.value + ("; on all records: outage, wants an operator" * row.all_pause)
    return [row.name, dialects, codes, action, row.why]


def _numbers(numbers: Collection[int] | None) -> str:
    if numbers is None:
        return "any"
    if isinstance(numbers, range):
        return f"{numbers.start // 100}xx"
    return ", ".join(map(str, numbers))


def _markdown(heads: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
