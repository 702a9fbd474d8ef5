from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from meter_worker.record_table import RECORD_ROWS
from meter_worker.verdict_page import page
from meter_worker.verdict_table import ACCOUNT_ROWS, DELIVERY_ROWS

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "worker" / "meter_worker"
# The other end of the wire answers with statuses, and its viewer asks it over HTTP.
OTHER_END = ("sandbox/", "demo/sandbox_view.py")
SOURCES = {
    name: path.read_text(encoding="utf-8")
    for path in sorted(WORKER.rglob("*.py"))
    if not (name := path.relative_to(WORKER).as_posix()).startswith(OTHER_END)
}


def numbers_to_tell_by(source: str) -> set[int]:
    """Return the numbers that a module compares with, matches against, or collects to do so."""
    telling = (ast.Compare, ast.match_case, ast.Set, ast.Tuple, ast.List)
    return {
        part.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, telling)
        for part in ast.walk(node.pattern if isinstance(node, ast.match_case) else node)
        if isinstance(part, ast.Constant) and type(part.value) is int
    }


def test_no_status_is_judged_elsewhere() -> None:
    """Statuses stand in the table; only the link tells interim answers from final ones."""
    judges = {
        name: statuses
        for name, source in SOURCES.items()
        if (statuses := {n for n in numbers_to_tell_by(source) if 100 <= n <= 599})
    }

    assert judges.pop("verdict_table.py") > {401, 413}
    # Error codes of records, of which some look like a status.
    assert judges.pop("record_table.py") == {404, 500}
    # Those of librdkafka itself, less their sign.
    assert judges.pop("kafka_link/codes.py") > {169, 181}
    assert judges == {"http_link/adapter.py": {200}}


def test_no_error_code_is_read_elsewhere() -> None:
    """Where answers are taken apart a code is read, and in its table it is judged."""
    readers = {
        name
        for name, source in SOURCES.items()
        if any(
            isinstance(node, ast.Constant) and node.value == "error_code"
            for node in ast.walk(ast.parse(source))
        )
    }

    assert readers == {"answers.py"}


def test_the_page_shows_the_tables_as_they_are() -> None:
    """`make docs` has been run since the tables were changed."""
    assert (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("rows", [DELIVERY_ROWS, ACCOUNT_ROWS, RECORD_ROWS])
def test_every_row_has_a_reason_that_fits_into_a_table(rows: Any) -> None:
    """A row that nobody can explain is a row that nobody dares to change."""
    assert [row.name for row in rows if "|" in row.why or not row.why.endswith(".")] == []


@pytest.mark.parametrize("rows", [DELIVERY_ROWS, ACCOUNT_ROWS])
def test_the_last_row_takes_whatever_is_left(rows: Any) -> None:
    """So that every answer has its verdict."""
    last = rows[-1]

    assert (last.statuses, last.shapes, last.says, last.alone, last.pinned) == (None,) * 5


def test_the_last_row_of_the_records_takes_whatever_is_left() -> None:
    """So that every entry has its verdict."""
    last = RECORD_ROWS[-1]

    assert (last.dialects, last.codes, last.says) == (None, None, None)
