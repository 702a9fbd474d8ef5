"""The simulation of a fleet runs, and its pages show what was played and measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
DOCS = ROOT / "docs"


def played(*arguments: str) -> dict[str, Any]:
    """Return what the simulation of fifty devices writes."""
    ran = subprocess.run(
        [sys.executable, BENCH / "fleet.py", "--devices", "50", "--json", "-", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    results: dict[str, Any] = json.loads(ran.stdout)
    return results


@pytest.fixture(scope="module")
def peaks() -> dict[tuple[str, str], int]:
    """Most devices that come back within a second, by outage and by how they wait."""
    runs = played("--outages", "1 hour,maintenance")["runs"]
    assert all(run["delivered"] == run["backlog"] > 0 for run in runs)
    return {(run["outage"], run["way"]): run["peak_contacts_a_second"] for run in runs}


def test_a_fleet_that_spreads_comes_back_with_a_lower_peak(
    peaks: dict[tuple[str, str], int],
) -> None:
    """Against clients that wait in step, after an outage; nothing is lost in any run."""
    assert peaks["1 hour", "jitter and spread"] <= peaks["1 hour", "in step"] / 2


def test_the_spread_parts_devices_that_were_told_when_to_come_back(
    peaks: dict[tuple[str, str], int],
) -> None:
    """Where the backend names the wait, jitter alone leaves the devices in step."""
    outage = "maintenance, 10 minutes"
    assert peaks[outage, "jitter and spread"] <= peaks[outage, "jitter"] / 2


def test_a_seed_gives_the_same_figures_again() -> None:
    """Whoever doubts a figure plays it again; another seed is another fleet."""
    first = played("--outages", "2 minutes", "--seed", "3")
    assert played("--outages", "2 minutes", "--seed", "3") == first
    assert played("--outages", "2 minutes", "--seed", "4")["runs"] != first["runs"]


def test_an_outage_that_is_not_played_is_refused() -> None:
    """By name, with those that are."""
    ran = subprocess.run(
        [sys.executable, BENCH / "fleet.py", "--outages", "1 hour,for ever"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, "for ever: choose from 2 minutes, " in ran.stderr) == (2, True)


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module(name)


def test_the_table_on_fleets_is_what_was_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made from the file beside the simulation, which has the settings of now."""
    report = _module("fleet_report", monkeypatch)
    results = json.loads((BENCH / "fleet.json").read_text(encoding="utf-8"))
    text = (DOCS / "fleet.md").read_text(encoding="utf-8")
    assert text == report.with_table(text, results), "stale: run make fleet"


def test_the_tables_on_sizing_are_worked_out_from_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every figure of the page follows from those in the file."""
    tables = _module("sizing_tables", monkeypatch)
    results = json.loads((BENCH / "sizing.json").read_text(encoding="utf-8"))
    text = (DOCS / "sizing.md").read_text(encoding="utf-8")
    assert text == tables.with_tables(text, results), "stale: run make sizing"
