"""The devices go on recording after the outage: `python -m tests.docs.morning EVENTS`.

One event after the other, each once all good ones before it have arrived: what is accepted after a
refusal is the proof of it. Once the poisonous ones are dead letters, all that is left at once.
"""

from __future__ import annotations

import contextlib
import sys
import time

from meter_lib import MeterClient, Settings
from meter_lib.opening import open_outbox
from tests.docs.outage import POISONED


def main() -> None:
    """Record so many events."""
    left = int(sys.argv[1])
    event = {
        "tenant_id": "globex",
        "device_id": "press-2",
        "meter_id": "page.processed.basic",
        "total_usage": 1,
    }
    with (
        MeterClient() as meters,
        contextlib.closing(open_outbox(Settings.load(), read_only=True)) as outbox,
    ):
        while left:
            status = outbox.status()
            if status.pending + status.dead == POISONED:
                count = left if status.dead == POISONED else 1
                meters.post_many([event] * count)
                left -= count
            time.sleep(0.05)


if __name__ == "__main__":
    main()
