"""Plays how a fleet of devices comes back after an outage, and writes what came of it as JSON.

    python bench/fleet.py [--devices N] [--seed N] [--outages NAME,...] [--json FILE]

`FILE` is bench/fleet.json by default, `-` for stdout. `python bench/fleet_report.py` makes
docs/fleet.md and its plots of it. Some minutes for 10,000 devices, on one core; the same seed
gives the same figures on every machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from typing import Any

from fleet_model import WAYS, Fleet, Outage, Result, Way, play

__all__ = ["OUTAGES", "RESULTS"]

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fleet.json")
OUTAGES = (
    Outage("2 minutes", 120),
    Outage("1 hour", 3_600),
    Outage("1 day", 86_400),
    Outage("3 days", 3 * 86_400),
    Outage("maintenance, 10 minutes", 600, retry_after_seconds=120.0),
    Outage("power cut, 1 day", 86_400, boots=True),
)
_PERCENTS = range(101)
_SECONDS_KEPT = 600


def summary(outage: Outage, way: Way, result: Result) -> dict[str, Any]:  # Any: what JSON carries
    """Return what is kept of a result."""
    last = len(result.drained_after) - 1
    return {
        "outage": outage.name,
        "way": way.name,
        "peak_requests_a_second": max(result.requests),
        "peak_contacts_a_second": max(result.contacts),
        "requests": sum(result.requests),
        "refused": result.refused,
        "backlog": result.backlog,
        "delivered": result.delivered,
        "duplicates": result.duplicates,
        "drained_after_percentiles": [
            round(result.drained_after[last * percent // 100], 1) for percent in _PERCENTS
        ],
        "requests_by_second": result.requests[:_SECONDS_KEPT],
        "contacts_by_second": result.contacts[:_SECONDS_KEPT],
    }


def main() -> None:
    """Play what was asked for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--devices", type=int, default=Fleet().devices)
    arguments.add_argument("--seed", type=int, default=Fleet().seed)
    names = {outage.name.partition(",")[0]: outage for outage in OUTAGES}
    arguments.add_argument("--outages", metavar="NAME,...", default=",".join(names))
    arguments.add_argument("--json", dest="file", metavar="FILE", default=RESULTS)
    chosen = arguments.parse_args()
    if unknown := set(chosen.outages.split(",")) - set(names):
        arguments.error(f"--outages {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    asked = [names[name] for name in chosen.outages.split(",")]
    # The backend is as large as the fleet asks for, whatever its size.
    share = chosen.devices / Fleet().devices
    fleet = Fleet(
        devices=chosen.devices,
        backend_requests_a_second=max(1, round(share * Fleet().backend_requests_a_second)),
        seed=chosen.seed,
    )
    logging.disable(logging.CRITICAL)  # each device tells of each of its failures
    runs: list[dict[str, Any]] = []  # Any: as above
    for outage in asked:
        for way in WAYS:
            run = summary(outage, way, play(fleet, outage, way))
            if run["delivered"] != run["backlog"]:
                raise AssertionError(f"events were lost or made up: {run}")
            runs.append(run)
            print(
                f"{outage.name}, {way.name}: at most {run['peak_requests_a_second']:,} requests/s,"
                f" {run['refused']:,} of {run['requests']:,} refused",
                file=sys.stderr,
            )
    results = {"fleet": fleet._asdict(), "runs": runs}
    if chosen.file == "-":
        print(json.dumps(results))
        return
    with open(chosen.file, "w", encoding="utf-8") as file:
        json.dump(results, file)
        file.write("\n")


if __name__ == "__main__":
    main()
