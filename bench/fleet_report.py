"""Renders the figures of docs/fleet.md, and its plots, from what `fleet.py` wrote.

python bench/fleet_report.py [--from FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from fleet import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["with_table"]

_DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs")
_Run = dict[str, Any]  # Any: what JSON carries


def _table(runs: Sequence[_Run]) -> Iterator[str]:
    yield (
        "| outage | devices wait | first contacts, most a second | requests, most a second |"
        " refused with 503 | half drained | 99 % drained | last drained | duplicates |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for run in runs:
        drained = run["drained_after_percentiles"]
        yield (
            f"| {run['outage']} | {run['way']} | {run['peak_contacts_a_second']:,}"
            f" | {run['peak_requests_a_second']:,}"
            f" | {run['refused']:,} of {run['requests']:,}"
            f" | {drained[50]:,.0f} s | {drained[99]:,.0f} s | {drained[100]:,.0f} s"
            f" | {100 * run['duplicates'] / run['backlog']:.2f} % |"
        )


def with_table(text: str, results: Mapping[str, Any]) -> str:  # Any: the JSON of `fleet.py`
    """Return the page with the table of these results."""
    before, _, rest = text.partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- /figures -->")
    table = "\n".join(_table(results["runs"]))
    return f"{before}<!-- figures -->\n\n{table}\n\n<!-- /figures -->{after}"


def main() -> None:
    """Write the table into the page, and the plots beside it."""
    from fleet_plots import draw_all  # noqa: PLC0415  # needs matplotlib

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--from", dest="source", metavar="FILE", default=RESULTS)
    chosen = arguments.parse_args()
    with open(chosen.source, encoding="utf-8") as file:
        results = json.load(file)
    draw_all(results["runs"], os.path.join(_DOCS, "fleet"))
    page = os.path.join(_DOCS, "fleet.md")
    with open(page, encoding="utf-8") as file:
        text = file.read()
    with open(page, "w", encoding="utf-8") as file:
        file.write(with_table(text, results))
    print("written: the table of docs/fleet.md, and docs/fleet/")


if __name__ == "__main__":
    main()
