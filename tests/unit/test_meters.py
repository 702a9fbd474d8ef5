from __future__ import annotations

import collections
import logging
import threading

import pytest

from meter_lib import meters
from meter_lib.meters import METERS, Meter, warn_once_if_unknown
from meter_lib.usage import usage_event


@pytest.fixture(autouse=True)
def _no_warnings_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_warned", {})


def test_the_catalogue_has_the_known_meters() -> None:
    """There are 18 meters, each under an id of its own; two of them measure time."""
    assert len(METERS) == len({meter.id for meter in METERS}) == 18
    assert collections.Counter(meter.type for meter in METERS) == {"volume": 16, "performance": 2}
    assert [meter.id for meter in METERS if meter.type == "performance"] == [
        "chat.on.time_hours",
        "chat.query.time_secs",
    ]
    assert METERS[0] == Meter(
        id="page.processed.basic",
        name="Basic Document Scanning",
        type="volume",
        description="Total number of basic pages processed",
    )


def test_every_meter_of_the_catalogue_can_be_used() -> None:
    """No id of the catalogue is one that an event may not have."""
    events = [usage_event("t", "d", meter.id, 1) for meter in METERS]
    assert [event.meter_id for event in events] == [meter.id for meter in METERS]


def test_known_meters_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A meter of the catalogue is nothing to talk about."""
    for meter in METERS:
        warn_once_if_unknown(meter.id)
    assert caplog.record_tuples == []


def test_an_unknown_meter_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each unknown id causes one warning in the life of the process, with nothing harmful in it."""
    for meter_id in ("page.procesed", "page.procesed", "other\u202e", "page.procesed"):
        warn_once_if_unknown(meter_id)
    assert caplog.record_tuples == [
        (
            "meter_lib",
            logging.WARNING,
            (
                f"meter id {shown} is not in the catalogue of known meters: its usage is recorded"
                " all the same, but check the spelling"
            ),
        )
        for shown in ("'page.procesed'", r"'other\u202e'")
    ]


def test_made_up_meter_ids_fill_neither_memory_nor_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a number of unknown ids the warnings end, and say that they do."""
    monkeypatch.setattr(meters, "MOST_WARNINGS", 3)
    for number in range(100):
        warn_once_if_unknown(f"made-up-{number}")
    assert len(caplog.records) == 4
    assert caplog.messages[-1] == "these were 3 unknown meter ids: no further ones are warned about"
    assert len(meters._warned) == 3


def test_threads_warn_once_between_them(caplog: pytest.LogCaptureFixture) -> None:
    """Threads that meet the same unknown id at once cause one warning."""
    together = threading.Barrier(8)

    def warn() -> None:
        together.wait()
        warn_once_if_unknown("page.procesed")

    threads = [threading.Thread(target=warn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1
