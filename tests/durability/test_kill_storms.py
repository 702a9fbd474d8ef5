"""SIGKILL at random moments: posters, workers and commands, none of which can lose an event."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from meter_lib import MeterClient, Settings
from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_lib.outbox import Burial, Settlement
from meter_worker.sandbox import Sandbox
from tests.durability.crashing import FACTOR
from tests.durability.programs import METER, Programs, counts_in, eventually, status_of, written_to

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

ROUNDS = 6 * FACTOR
DICE = random.Random(7)  # noqa: S311  # nothing secret


def strike(process: subprocess.Popen[bytes], path: str) -> None:
    """Kill a process a moment after it, or another one, has written to the outbox."""
    with written_to(path) as written:
        eventually(lambda: written() or process.poll() is not None)
    time.sleep(DICE.random() * 0.04)
    process.kill()
    process.wait()


def test_a_storm_over_posters_and_workers_delivers_each_event_once(tmp_path: Path) -> None:
    """Posters and workers killed again and again: all that was accepted arrives, under one key."""
    with (
        Sandbox() as sandbox,
        Programs(
            tmp_path,
            stream_url=sandbox.url,
            accounts_url=sandbox.url,
            poll_interval="0.01",
            backoff_base="0.01",
            backoff_max="0.05",
            batch_size="20",
        ) as programs,
    ):
        # Stored, and the answer lost: what is most like being billed twice.
        sandbox.fault("drop_reply", times=3, after=2)
        posters = [programs.poster(str(n)) for n in range(2)]
        eventually(lambda: len(programs.acknowledged) > 20)
        for life in range(ROUNDS):
            worker = programs.command("worker")
            before = sandbox.count
            eventually(lambda before=before: sandbox.count > before)
            strike(worker, programs.path)
            strike(posters.pop(0), programs.path)
            posters.append(programs.poster(f"life {life}"))
        said = len(programs.acknowledged)
        eventually(lambda: len(programs.acknowledged) > said)
        for poster in posters:
            strike(poster, programs.path)

        acknowledged = programs.acknowledged
        found = counts_in(programs.path)
        assert acknowledged <= {row.key for row in found.rows} | set(sandbox.keys)
        assert found.accepted >= len(acknowledged) > 100

        assert programs.result("flush", "--timeout", "60") == 0
        status = status_of(programs.path)
        assert (status.pending, status.dead, status.removed) == (0, 0, 0)
        assert status.delivered == status.accepted == found.accepted == sandbox.distinct
        assert acknowledged <= set(sandbox.keys)
        keys_of = defaultdict(set)
        for record in sandbox.records:
            value = record.value
            keys_of[value["device_id"], value["total_usage"]].add(value["idempotency_key"])
        assert {content: keys for content, keys in keys_of.items() if len(keys) > 1} == {}
        assert "Traceback" not in programs.logs


def test_an_import_killed_half_way_can_be_repeated(tmp_path: Path) -> None:
    """`post --from-file`, killed and begun again, records each line with a key of its own once."""
    lines = [
        {
            "tenant_id": "t",
            "device_id": "d",
            "meter_id": METER,
            "total_usage": number,
            "metadata": {"pad": "x" * 400},
            "idempotency_key": f"line-{number}",
        }
        for number in range(4000)
    ]
    file = tmp_path / "usage.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with Programs(tmp_path) as programs:
        with contextlib.closing(open_outbox(Settings(outbox=programs.path))) as outbox:
            assert outbox.status().accepted == 0
        so_far = 0
        for _ in range(ROUNDS):
            strike(programs.command("post", "--from-file", str(file)), programs.path)
            found = counts_in(programs.path)
            assert [row.key for row in found.rows] == [
                line["idempotency_key"] for line in lines[: found.accepted]
            ]
            assert found.accepted >= so_far
            so_far = found.accepted
        assert programs.result("post", "--from-file", str(file)) == 0
        found = counts_in(programs.path)
        assert [row.key for row in found.rows] == [line["idempotency_key"] for line in lines]
        assert "Traceback" not in programs.logs


def bury(path: str, count: int) -> None:
    """Make an outbox with so many dead letters, and three more events that are pending."""
    settings = Settings(outbox=path)
    event = {"tenant_id": "t", "device_id": "d", "meter_id": METER, "total_usage": 1}
    with MeterClient(settings=settings) as client:
        client.post_many([event] * (count + 3))
    now = SystemClock().now()
    with contextlib.closing(open_outbox(settings)) as outbox:
        due = outbox.due(now=now, limit=count, max_bytes=10**9)
        letters = [Burial(one, "rejected", "for the sake of the test") for one in due]
        outbox.settle(Settlement(buried=letters), now=now)


def test_commands_on_dead_letters_killed_half_way_move_none_twice(tmp_path: Path) -> None:
    """Killed while replaying or purging, each dead letter is still dead, or due, or counted."""
    with Programs(tmp_path) as programs:
        bury(programs.path, 3000)
        before = counts_in(programs.path)
        assert (before.accepted, before.dead) == (3003, 3000)
        for number in range(ROUNDS):
            command = ("replay", "purge")[number % 2]
            some = str(DICE.randrange(50, 900))
            strike(
                programs.command("dead-letters", command, "--all", "--yes", "--limit", some),
                programs.path,
            )
            # Whether it is whole and adds up is seen to there.
            found = counts_in(programs.path)
            assert found.accepted == 3003
            assert {row.key for row in found.rows} <= {row.key for row in before.rows}
            assert found.removed >= before.removed
            before = found
        assert before.dead < 3000
        assert programs.result("dead-letters", "purge", "--all", "--yes", "--no-export") == 0
        found = counts_in(programs.path)
        assert (found.accepted, found.dead) == (3003, 0)
        assert found.removed == before.removed + before.dead
        assert "Traceback" not in programs.logs
