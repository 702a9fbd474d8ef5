"""The command line over an outbox on a server: the same words, and no password in any."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from meter_lib.outbox import Settlement
from tests.integration.operating import TIME, Operator

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg


@pytest.fixture
def operator(
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Operator:
    """Somebody at the command line, whose settings name a server."""
    monkeypatch.setenv("METER_OUTBOX", postgres_url)
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    monkeypatch.chdir(tmp_path)
    return Operator(postgres_url, capsys)


def test_every_command_that_looks_knows_a_server(operator: Operator) -> None:
    """Status, lists, checks and settings tell of the outbox, its password masked."""
    missing = operator.run("status")
    assert (missing.code, "there is no outbox in postgresql://***@" in missing.stderr) == (1, True)
    operator.bury("dead")
    operator.post("a", "b")
    said = [
        operator.run("status"),
        operator.run("status", "--json"),
        operator.run("pending", "list"),
        operator.run("dead-letters", "list"),
        operator.run("migrate", "--check"),
        operator.run("config"),
        operator.run("doctor", "--stream-url", "http://127.0.0.1:9"),
    ]
    assert [ended.code for ended in said] == [0, 0, 0, 0, 0, 0, 1]
    assert [ended for ended in said if "s3cret" in ended.stdout + ended.stderr] == []
    status = said[1].json
    assert (status["pending"], status["dead"], status["worker"]) == (
        2,
        1,
        {"running": False, "pid": None, "count": 0},
    )
    assert status["outbox"].startswith("postgresql://***@127.0.0.1")
    assert "3 accepted, 2 pending, 1 dead" in said[-1].stdout
    assert "PostgreSQL 1" in said[-1].stdout
    assert "permissions" not in said[-1].stdout


def test_what_is_purged_is_exported_to_where_one_is(operator: Operator, tmp_path: Path) -> None:
    """A server has no folder beside it: the export goes to the working directory."""
    operator.bury("dead")
    ended = operator.run("dead-letters", "purge", "--all", "--yes")
    [exported] = tmp_path.glob("meter-lib.purged-*.jsonl")
    assert (ended.code, json.loads(exported.read_text())["idempotency_key"]) == (0, "dead")
    assert operator.run("dead-letters", "import", str(exported)).code == 0
    assert operator.keys() == ["dead"]
    replayed = operator.run("dead-letters", "replay", "--all", "--yes")
    assert (replayed.code, operator.keys(), operator.keys("pending")) == (0, [], ["dead"])


def test_what_needs_a_file_says_so(operator: Operator) -> None:
    """To try the disk of a device makes no sense for an outbox that is on none."""
    ended = operator.run("torture")
    assert (ended.code, "the outbox is on a server" in ended.stderr) == (2, True)
    assert "s3cret" not in ended.stderr


def test_an_outbox_is_moved_to_a_file_and_back(operator: Operator) -> None:
    """It says what went where, no password among it; the old place names the new one."""
    operator.bury("dead")
    operator.post("a", "b")
    planned = operator.run("move", "--to", "new.db", "--dry-run", "--json")
    moved = operator.run("move", "--to", "new.db", "--json")
    assert (planned.code, planned.stderr) == (0, "")
    assert (moved.code, moved.stderr) == (0, "")
    for name in ("outbox_id", "accepted", "pending", "pending_units", "dead", "known_keys"):
        assert moved.json[name] == planned.json[name]
    assert moved.json["from"].startswith("postgresql://***@127.0.0.1")
    assert moved.json["kept"].startswith("schema meter_lib_moved_")
    refused = operator.run("status")
    assert (refused.code, f"has moved to {moved.json['to']}" in refused.stderr) == (1, True)
    back = operator.run("move", "--outbox", "new.db", "--to", operator.path)
    assert (back.code, "s3cret" in back.stdout + back.stderr) == (0, False)
    assert (operator.keys(), operator.keys("pending")) == (["dead"], ["a", "b"])
    assert operator.run("audit").code == 0


def test_the_books_of_a_server_are_audited(
    operator: Operator, connection: psycopg.Connection[tuple[int, ...]]
) -> None:
    """Each event and unit is found where it is; what is missing is found, too."""
    operator.bury("dead", "purged", total_usage=5)
    operator.run("dead-letters", "purge", "purged", "--yes", "--no-export")
    operator.post("delivered", total_usage=2**63 - 1)
    with operator.opened() as outbox:
        [event] = outbox.due(now=TIME, limit=9, max_bytes=2**20)
        outbox.settle(Settlement(delivered=[event]), now=TIME)
    operator.post("pending", "early", total_usage=2**63 - 1)
    operator.post("old", tenant_id="ü", timestamp=10**12)
    ended = operator.run("audit", "--json")
    assert (ended.code, ended.json["balanced"], ended.json["problems"]) == (0, True, [])
    assert ended.json["totals"] == {
        "accepted": {"events": 6, "units": 3 * (2**63 - 1) + 11},
        "pending": {"events": 3, "units": 2 * (2**63 - 1) + 1},
        "dead": {"events": 1, "units": 5},
        "delivered": {"events": 1, "units": 2**63 - 1},
        "removed": {"events": 1, "units": 5},
    }
    assert [(row["day"], row["tenant_id"]) for row in ended.json["rows"]] == [
        ("2001-09-09", "ü"),
        ("2026-09-21", "t"),
    ]
    connection.execute("DELETE FROM meter_lib.events WHERE idempotency_key = 'early'")
    connection.execute("UPDATE meter_lib.events SET total_usage = 9 WHERE idempotency_key = 'old'")
    connection.commit()
    ended = operator.run("audit", "--json")
    assert (ended.code, ended.json["problems"]) == (
        1,
        [
            "1 events are counted with other units than they are billed with",
            "5 events are accepted one by one, 6 by their counter",
        ],
    )
