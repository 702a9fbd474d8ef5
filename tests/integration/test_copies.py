"""Copies of an outbox: found out on another machine, named anew, and nothing of them lost."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from meter_lib import machine as machines
from meter_lib._sqlite import SqliteOutbox
from meter_lib._sqlite.copies import former_names
from meter_lib.errors import OutboxUnavailable
from meter_lib.outbox import Settlement
from meter_lib.usage import usage_event
from meter_worker.wire import record_texts

if TYPE_CHECKING:
    from pathlib import Path

    from meter_lib.outbox import DueEvent
    from tests.integration.operating import Operator

NOON = 1_760_000_000_000
MIB = 1024 * 1024


class Hardware:
    """The machine that the library believes to be on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self._machine_id = folder / "machine-id"
        self._serial = folder / "serial-number"
        self._transient = folder / "transient"
        self._mark = folder / "dockerenv"
        monkeypatch.setattr(machines, "_MACHINE_ID", str(self._machine_id))
        monkeypatch.setattr(machines, "_BOARD_SERIAL", str(self._serial))
        monkeypatch.setattr(machines, "_TRANSIENT_MACHINE_ID", str(self._transient))
        monkeypatch.setattr(machines, "_CONTAINER_MARKS", (str(self._mark),))
        monkeypatch.setattr(machines, "_CONTAINER_ROOTS", frozenset())
        self.be("a")

    def be(self, machine: str, serial: str = "") -> None:
        """Be another one: machines are named by a hexadecimal digit."""
        self._machine_id.write_text(machine * 32 + "\n")
        self._serial.write_text(serial + "\0")

    def forget(self) -> None:
        """Have no machine id."""
        self._machine_id.unlink(missing_ok=True)

    def be_without_memory(self) -> None:
        """Have a machine id that is made anew at each boot."""
        self._transient.write_text("")

    def be_a_container(self) -> None:
        """Be a container, whose machine id is its image's."""
        self._mark.write_text("")


@pytest.fixture
def hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """Some machine, which is `a` at first."""
    return Hardware(tmp_path / "hardware", monkeypatch)


def opened(path: str) -> closing[SqliteOutbox]:
    """The outbox at a path."""
    return closing(SqliteOutbox(path, max_bytes=64 * MIB))


def record(path: str, *units: int) -> None:
    """Record an event for each, in an opening of its own."""
    with opened(path) as outbox:
        outbox.append([usage_event("t", "d", "m", one) for one in units], now=NOON)


def due(path: str) -> list[DueEvent]:
    """All that may be delivered."""
    with opened(path) as outbox:
        return outbox.due(now=NOON, limit=100, max_bytes=MIB)


def records(path: str) -> list[dict[str, object]]:
    """The values that go to the backend."""
    with opened(path) as outbox:
        events = outbox.due(now=NOON, limit=100, max_bytes=MIB)
        return [
            json.loads(text)["value"]
            for text in record_texts(events, outbox_id=outbox.outbox_id, customer_id='"c"')
        ]


def name(path: str) -> str:
    """The outbox's own name."""
    with opened(path) as outbox:
        return outbox.outbox_id


def copy(path: str, tmp_path: Path) -> str:
    """Copy the outbox as an image of a device does: file, log and all, under the same path."""
    there = tmp_path / "copy.db"
    for ending in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path + ending, str(there) + ending)
    return str(there)


def test_a_copy_on_another_machine_gets_a_name_of_its_own(
    outbox_path: str, tmp_path: Path, hardware: Hardware, caplog: pytest.LogCaptureFixture
) -> None:
    """No two events of the machines share name and number; those in both are the same records."""
    with opened(outbox_path) as outbox:
        outbox.append([usage_event("t", "d", "m", one) for one in (1, 2)], now=NOON)
        there = copy(outbox_path, tmp_path)
    record(outbox_path, 3)
    caplog.set_level(logging.WARNING)
    hardware.be("b")
    record(there, 4)
    assert "was last used on another machine" in caplog.text
    copied = records(there)
    hardware.be("a")
    original = records(outbox_path)
    assert original[:2] == copied[:2]
    identities = {(one["outbox_id"], one["seq"]) for one in (*original, *copied)}
    assert len(identities) == 4
    assert [one["total_usage"] for one in copied] == [1, 2, 4]
    assert len({one["idempotency_key"] for one in (*original, *copied)}) == 4
    assert copied[2]["outbox_id"] not in {one["outbox_id"] for one in original}


def test_a_copy_of_a_copy_keeps_each_name_for_its_events(
    outbox_path: str, hardware: Hardware
) -> None:
    """Wherever an event was recorded, it goes out under the name that it was recorded under."""
    names: list[str] = []
    for digit in "abcd":
        hardware.be(digit)
        record(outbox_path, 1, 2)
        names += [name(outbox_path)] * 2
    assert len(set(names)) == 4
    assert [one["outbox_id"] for one in records(outbox_path)] == names


def test_a_copy_keeps_its_books_and_its_dead_letters(outbox_path: str, hardware: Hardware) -> None:
    """A new name changes nothing of what was accepted, delivered or dead."""
    record(outbox_path, 1, 2, 3)
    with opened(outbox_path) as outbox:
        events = outbox.due(now=NOON, limit=1, max_bytes=MIB)
        outbox.settle(Settlement(delivered=events), now=NOON)
        before = outbox.status()
    hardware.be("b")
    with opened(outbox_path) as outbox:
        outbox.append([], now=NOON)
        after = outbox.status()
        with outbox.audit(progress=lambda _done, _of: None) as audit:
            assert audit.problems == []
    assert after.copied_from == before.outbox_id != after.outbox_id
    assert (after.accepted, after.pending, after.delivered) == (3, 2, 1)


def test_the_same_machine_is_no_other(outbox_path: str, tmp_path: Path, hardware: Hardware) -> None:
    """Neither a restart nor a move to another path makes a copy of an outbox."""
    record(outbox_path, 1)
    before = name(outbox_path)
    moved = copy(outbox_path, tmp_path)
    record(moved, 2)
    assert name(moved) == name(outbox_path) == before
    hardware.be("b")
    record(moved, 3)
    record(moved, 4)
    with opened(moved) as outbox:
        second = outbox.status()
    assert second.outbox_id != before
    assert len({one["outbox_id"] for one in records(moved)}) == 2


def test_a_board_is_told_by_its_serial_number(outbox_path: str, hardware: Hardware) -> None:
    """A card that was copied with its machine id is found out in another board."""
    hardware.be("a", serial="1000000012345678")
    record(outbox_path, 1)
    before = name(outbox_path)
    hardware.be("a", serial="1000000087654321")
    assert name(outbox_path) != before


@pytest.mark.parametrize("change", ["forget", "be_without_memory", "be_a_container"])
def test_where_a_machine_cannot_be_known_nothing_is_a_copy(
    outbox_path: str, hardware: Hardware, change: str
) -> None:
    """A container, or a system without a lasting machine id, makes no false alarm."""
    record(outbox_path, 1)
    before = name(outbox_path)
    for digit in "bc":
        hardware.be(digit)
        getattr(hardware, change)()
        record(outbox_path, 2)
    with opened(outbox_path) as outbox:
        outbox.append([], now=NOON)
        assert (outbox.outbox_id, outbox.status().copied_from) == (before, None)
    assert len(due(outbox_path)) == 3


def test_an_outbox_that_no_machine_claimed_is_claimed_quietly(
    outbox_path: str, hardware: Hardware
) -> None:
    """What a container or an earlier version recorded is no copy on the machine that has it now."""
    hardware.be_a_container()
    record(outbox_path, 1)
    before = name(outbox_path)
    hardware._mark.unlink()
    record(outbox_path, 2)
    assert name(outbox_path) == before
    hardware.be("b")
    assert name(outbox_path) != before


def test_a_program_that_has_the_copy_open_names_its_events_right(
    outbox_path: str, hardware: Hardware
) -> None:
    """A flusher in a container that opened the copy first sends no event under a wrong name."""
    record(outbox_path, 1)
    hardware.be_a_container()
    with opened(outbox_path) as flusher:
        old = flusher.outbox_id
        hardware._mark.unlink()
        hardware.be("b")
        record(outbox_path, 2)
        sent = [
            json.loads(text)["value"]
            for text in record_texts(
                flusher.due(now=NOON, limit=9, max_bytes=MIB), outbox_id=old, customer_id='"c"'
            )
        ]
    assert [one["outbox_id"] for one in sent] == [old, name(outbox_path)]


def test_a_salvaged_copy_knows_its_names(outbox_path: str, hardware: Hardware) -> None:
    """Names, machine and all go over into the new outbox when a damaged one is set aside."""
    record(outbox_path, 1)
    hardware.be("b")
    record(outbox_path, 2)
    before = records(outbox_path)
    with open(outbox_path, "r+b") as file:
        file.write(bytes(100))
    assert records(outbox_path) == before
    connection = sqlite3.connect(outbox_path)
    epoch, copied_from = connection.execute("SELECT epoch, copied_from FROM outbox").fetchone()
    connection.close()
    assert (epoch, len(former_names(copied_from))) == (2, 1)


def test_a_damaged_copy_of_another_machine_is_found_out(
    outbox_path: str, hardware: Hardware
) -> None:
    """Damage hides no copy: what is set aside on the way is named anew as well."""
    record(outbox_path, 1)
    before = name(outbox_path)
    hardware.be("b")
    with open(outbox_path, "r+b") as file:
        file.write(bytes(100))
    record(outbox_path, 2)
    assert [one["outbox_id"] == before for one in records(outbox_path)] == [True, False]


def test_the_operator_is_told(operator: Operator, hardware: Hardware) -> None:
    """`status` and `doctor` say of what it is a copy."""
    operator.post("a")
    before = operator.run("status", "--json").json
    assert (before["copied_from"], before["copied_at"]) == (None, None)
    hardware.be("b")
    operator.post("b")
    after = operator.run("status", "--json").json
    assert after["copied_from"] == before["outbox_id"] != after["outbox_id"]
    assert after["copied_at"] > NOON
    assert f"copied from   {before['outbox_id']}, found at" in operator.run("status").stdout
    findings = {one["name"]: one for one in operator.run("doctor", "--json").json["checks"]}
    assert findings["copy"]["verdict"] == "warning"
    assert before["outbox_id"] in findings["copy"]["found"]


def test_an_outbox_without_its_row_is_damaged(outbox_path: str) -> None:
    """Reading it is a typed error that says what to do; the next post salvages what it has."""
    record(outbox_path, 1, 2)
    connection = sqlite3.connect(outbox_path, isolation_level=None)
    connection.execute("DELETE FROM outbox")
    connection.close()
    with (
        closing(SqliteOutbox(outbox_path, max_bytes=64 * MIB, read_only=True)) as reader,
        pytest.raises(OutboxUnavailable, match="doctor --salvage"),
    ):
        reader.status()
    record(outbox_path, 3)
    assert [event.total_usage for event in due(outbox_path)] == [1, 2, 3]
