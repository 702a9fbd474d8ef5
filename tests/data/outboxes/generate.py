"""Makes the outboxes of this folder anew, by the programs that made such outboxes.

    python tests/data/outboxes/generate.py

Each schema has an outbox, made by the last commit in which it was the newest. That commit is taken
from the history of this repository, and its own code records, settles and is killed with
SIGKILL while the file is open: so the log beside the file is hot. What it recorded is
written beside it as JSON. The keys that the library makes are others each time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COMMITS = {"0001": "95b7448", "0002": "5a1aa5c", "0003": "474a02a", "0004": "cdc6a0b"}

# Run by the code of such a commit. What it uses of it is the same in all of them.
_PROGRAM = """
import json, os, signal, sys
from meter_lib._sqlite import SqliteOutbox
from meter_lib.outbox import Burial, Deferral, Settlement
from meter_lib.usage import usage_event

NOON, DAY = 1_760_000_000_000, 86_400_000
path, expected = sys.argv[1:]
recorded = []

def opened():
    return SqliteOutbox(path, max_bytes=64 * 2**20)

def record(outbox, number):
    tenant, device = ("acme", "gate/1") if number % 2 else ("hansa", "Pr\\u00fcfstelle 3")
    text = "\\u00fc \\u2603 \\" \\\\ " + "x" * (number * 7 % 90)
    given = {"metadata": {"number": str(number), "text": text}}
    if number % 3 == 0:
        given["idempotency_key"] = f"own-{number}"
    if number % 5 == 0:
        units, given["start_time"], given["end_time"] = None, NOON - 9000, NOON + number
    else:
        units, given["timestamp"] = 10**(number % 18), NOON + number % 3 * DAY
    event = usage_event(tenant, device, "page.processed.basic", units, **given)
    (receipt,) = outbox.append([event], now=NOON + number)
    recorded.append({
        "seq": number, "tenant_id": tenant, "device_id": device,
        "idempotency_key": receipt["idempotency_key"], "event_time": receipt["event_time"],
        "payload": json.loads(event.payload), "state": "pending",
        "is_own_key": "idempotency_key" in given,
    })

def due(outbox):
    return [event for event in outbox.due(now=NOON, limit=100, max_bytes=10**6)
            if recorded[event.seq - 1]["state"] == "pending"]

def become(events, state):
    for event in events:
        recorded[event.seq - 1]["state"] = state
    return events

outbox = opened()
for number in range(1, 13):
    record(outbox, number)
events = due(outbox)
outbox.settle(Settlement(delivered=become(events[:3], "delivered")), now=NOON)
outbox.settle(Settlement(buried=[Burial(event, "rejected", "no \\u2603")
                                 for event in become(events[3:6], "dead")]), now=NOON)
outbox.purge([event.seq for event in become(events[3:4], "removed")])
# Closed, so that this much is in the file; the rest will be in the log.
outbox.close()
outbox = opened()
for number in range(13, 25):
    record(outbox, number)
events = due(outbox)
outbox.settle(Settlement(delivered=become(events[:2], "delivered")), now=NOON)
outbox.settle(Settlement(deferred=[Deferral(event, NOON + 60_000, counts=True)
                                   for event in events[2:3]]), now=NOON)
with open(expected, "w") as file:
    json.dump({"outbox_id": outbox.outbox_id, "events": recorded}, file, indent=1)
    file.write("\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""


def make(schema: str, commit: str) -> None:
    """Make the outbox of a schema, and what is to be found in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.check_output(
            ["git", "archive", commit],  # noqa: S607  # whichever git made this clone
            cwd=FOLDER.parents[2],
        )
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder / "code", filter="data")
        roots = [folder / "code", folder / "code/worker", folder / "code/migrations"]
        expected = FOLDER / f"{schema}.json"
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder / "outbox.db"), str(expected)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))},
            cwd=folder,
            check=False,
        )
        for ending in ("", "-wal"):
            shutil.copyfile(folder / f"outbox.db{ending}", FOLDER / f"{schema}.db{ending}")
        json.loads(expected.read_text())


if __name__ == "__main__":
    for schema, commit in COMMITS.items():
        make(schema, commit)
