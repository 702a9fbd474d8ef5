"""Looks an outbox through after a crash: is everything there that was promised?"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from meter_lib import MeterClient, MeterError, Settings
from meter_lib.opening import open_outbox
from meter_lib.outbox import Selector, Settlement
from meter_worker.torture.events import MAX_BYTES, is_whole, stream_is_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib.outbox import DueEvent, Outbox
    from meter_worker.torture.promised import Promised

__all__ = ["Examination", "examine"]

# Later than any event is set aside until.
_END_OF_TIME = 2**53
_EVENTS_A_LOOK = 500
_SECONDS_TO_INSPECT = 60
_LAST_EVENT = {
    "tenant_id": "t",
    "device_id": "after the crash",
    "meter_id": "page.processed.basic",
    "total_usage": 1,
    "metadata": {"pad": "1"},
}


class Examination(NamedTuple):
    """What was found."""

    lost: list[str]
    """Keys of events that have a receipt and are nowhere."""
    faults: list[str]
    """What else is wrong, in words."""

    @property
    def passed(self) -> bool:
        """Whether nothing is lost and nothing is wrong."""
        return not self.lost and not self.faults


def examine(path: str, promised: Promised) -> Examination:
    """Open an outbox after a crash, post to it, deliver all of it, and say what was missing.

    The outbox is empty afterwards. Raises nothing: what the outbox raises is a fault.
    """
    settings = Settings(outbox=path, max_bytes=MAX_BYTES)
    try:
        with contextlib.closing(open_outbox(settings)) as outbox:
            return _examine(outbox, settings, promised)
    except MeterError as error:
        return Examination(sorted(promised.acknowledged), [f"it cannot be used: {error}"])


def _examine(outbox: Outbox, settings: Settings, promised: Promised) -> Examination:
    before = outbox.status()
    # Nothing that a crash may leave is damage.
    faults = [f"{path} was set aside as damaged" for path in before.set_aside]
    faults += outbox.inspect(seconds=_SECONDS_TO_INSPECT).problems
    # Another connection, as another program would have.
    with MeterClient(settings=settings) as client:
        [receipt] = client.post_many([_LAST_EVENT])
    if not outbox.try_hold():
        return Examination([], ["a flusher holds it, although none runs"])
    letters = [letter.idempotency_key for letter in outbox.dead_letters(Selector())]
    due = list(_delivered(outbox))
    after = outbox.status()

    keys = Counter([*letters, *(event.idempotency_key for event in due)])
    lost = sorted(promised.acknowledged - keys.keys() - promised.leaving)
    faults += [f"{key} is there twice" for key, count in keys.items() if count > 1]
    faults += [f"event {event.seq} is not whole" for event in due if not is_whole(event)]
    if not promised.leaving:
        faults += _half_batches(due)
    here = len(letters) + len(due)
    gone = before.delivered + before.removed
    if (before.accepted + 1, after.accepted) != (after.accepted, here + gone):
        faults.append(
            f"the counts do not add up: {before.accepted} accepted, {gone} delivered or removed,"
            f" and with one more {here} there"
        )
    if (before.pending + 1, before.dead) != (len(due), len(letters)):
        faults.append(
            f"{before.pending} pending and {before.dead} dead were counted, and with one more"
            f" {len(due)} and {len(letters)} found"
        )
    if (after.pending, after.delivered) != (0, before.delivered + len(due)):
        faults.append(f"after delivering all: {after.pending} pending, {after.delivered} delivered")
    if (receipt["idempotency_key"], after.accepted) not in (
        (event.idempotency_key, event.seq) for event in due
    ):
        faults.append(f"the event posted after the crash is not there with seq {after.accepted}")
    return Examination(lost, faults)


def _delivered(outbox: Outbox) -> Iterator[DueEvent]:
    """Settle as delivered what is due, and yield it, until nothing is."""
    while True:
        due = outbox.due(now=_END_OF_TIME, limit=_EVENTS_A_LOOK, max_bytes=MAX_BYTES)
        if not due:
            return
        yield from due
        outbox.settle(Settlement(delivered=due), now=_END_OF_TIME)


def _half_batches(due: list[DueEvent]) -> Iterator[str]:
    batches = Counter(event.device_id for event in due)
    for device_id, count in batches.items():
        size = stream_is_batch(device_id)
        if size not in (None, count):
            yield f"of {device_id!r} only {count} events are there"
