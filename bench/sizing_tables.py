"""The tables of docs/sizing.md, worked out from what `sizing.py` has measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["with_tables"]

_DAY = 86_400
_SIZES = (
    (100, 1_000),
    (1_000, 1_000),
    (1_000, 10_000),
    (10_000, 1_000),
    (10_000, 10_000),
    (10_000, 100_000),
    (100_000, 1_000),
)
_TIMER_SECONDS = 60
# A small eMMC: 8 GB, each cell written 3,000 times, and twice as much written as was asked for.
_FLASH_BYTES = 8e9 * 3_000 / 2


def with_tables(text: str, results: Mapping[str, Any]) -> str:  # Any: the JSON of `sizing.py`
    """Return the page with these figures."""
    for name, lines in {
        "measured": _measured(results["figures"], results["versions"]),
        "fleets": _fleets(results["figures"]),
        "devices": _devices(results["figures"]),
    }.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        table = "\n".join(lines)
        text = f"{before}<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->{after}"
    return text


def _measured(figures: Mapping[str, float], versions: str) -> Iterator[str]:
    wire = {
        name: figures[f"wire_sent_{name}"] + figures[f"wire_received_{name}"]
        for name in ("alone", "batch", "batch_gzip")
    }
    yield f"{versions}; bytes for each event of the README's example:"
    yield ""
    yield "| what | figure | how it was measured |"
    yield "|---|---|---|"
    for what, figure, how in (
        ("on the disk while it is pending", figures["disk_pending"], "growth of the outbox"),
        ("written by a lone post", figures["flash_post"], "`write_bytes` of `/proc/self/io`"),
        ("written for its whole life, online", figures["flash_life_online"], "the same"),
        (
            "written for its whole life, drained later by 500",
            figures["flash_post"] + figures["flash_drain"],
            "the same",
        ),
        ("on the wire, alone in a request", wire["alone"], "a relay that counts, both ways"),
        ("on the wire, 500 in a request", wire["batch"], "the same"),
        ("on the wire, 500 in a request, gzip", wire["batch_gzip"], "the same"),
    ):
        yield f"| {what} | {figure:,.0f} bytes | {how} |"
    yield (
        f"| events in a request, online, one at a time |"
        f" {figures['events_a_request_online']:.1f} | counted by the backend |"
    )
    yield (
        f"| events in a request, `meter-lib flush` after each ten posts |"
        f" {figures['events_a_request_timer']:.1f} | the same |"
    )


def _fleets(figures: Mapping[str, float]) -> Iterator[str]:
    alone = figures["wire_sent_alone"] + figures["wire_received_alone"]
    batch = figures["wire_sent_batch"] + figures["wire_received_batch"]
    yield (
        "| devices | events a day and device | events/s | requests/s, worker | GB a day |"
        " requests/s, `flush` once a minute | GB a day |"
    )
    yield "|---|---|---|---|---|---|---|"
    for devices, events in _SIZES:
        a_second = events / _DAY
        cells: list[str] = []
        for requests in (a_second, min(a_second, 1 / _TIMER_SECONDS)):
            # What a request takes whatever it carries, and what each event adds.
            wire = requests * (alone - batch) + a_second * batch
            cells += [_number(devices * requests), _number(devices * wire * _DAY / 1e9)]
        yield f"| {devices:,} | {events:,} | {_number(devices * a_second)} | {' | '.join(cells)} |"


def _devices(figures: Mapping[str, float]) -> Iterator[str]:
    yield (
        "| events a day | disk, 1 day offline | 7 days | 30 days | flash written a year |"
        " years until a small eMMC is worn out |"
    )
    yield "|---|---|---|---|---|---|"
    for events in sorted({events for _, events in _SIZES}):
        pending = [
            f"{_number(days * events * figures['disk_pending'] / 1e6)} MB" for days in (1, 7, 30)
        ]
        written = 365 * events * figures["flash_life_online"]
        yield (
            f"| {events:,} | {' | '.join(pending)} | {_number(written / 1e9)} GB |"
            f" {_number(_FLASH_BYTES / written)} |"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
