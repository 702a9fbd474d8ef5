"""What the peers are up to: spells drawn at random, and fair weather."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.simulation.flaky import FlakyOutbox
    from tests.simulation.proxy import Proxy

_BAD = (
    "store_and_drop",
    "drop",
    "twice",
    "status",
    "redirect",
    "portal",
    "garbled",
    "refuse_all",
    "lacks_rights",
    "known_already",
)


def change_weather(
    proxy: Proxy, faults: FlakyOutbox, draw: random.Random, tenants: Sequence[str]
) -> str:
    """Let another spell begin; return it in words."""
    moods = draw.sample(_BAD, draw.randint(0, 3))
    good = draw.choice([0.0, 0.5, 2.0, 5.0]) if moods else 1.0
    proxy.moods = [("good", good), *((mood, 1.0) for mood in moods)]
    proxy.accounts_moods = [
        ("found", draw.choice([0.0, 1.0, 1.0])),
        ("down", draw.choice([0.1, 1])),
    ]
    proxy.absent = {tenant for tenant in tenants if draw.random() < 0.15}
    streams = [f"{t}/{d}/{m}" for t in tenants for d in ("d1", "d2") for m in "mno"]
    sick = draw.choice([0.0, 0.0, 0.1, 0.3, 1.0])
    proxy.sick_streams = {stream for stream in streams if draw.random() < sick}
    for tenant in tenants:
        if draw.random() < 0.2:
            proxy.customers[tenant] += 1
    proxy.flaky = draw.choice([0.0, 0.0, 0.1, 0.5])
    faults.fails = draw.choice([0.0, 0.0, 0.0, 0.05, 0.3])
    return (
        f"weather: {proxy.moods}, sick {sorted(proxy.sick_streams)}, flaky {proxy.flaky}, accounts "
        f"{proxy.accounts_moods}, absent {proxy.absent}, disk fails {faults.fails}"
    )


def clear_up(proxy: Proxy, faults: FlakyOutbox) -> None:
    """Let all faults end."""
    proxy.moods = [("good", 1.0)]
    proxy.accounts_moods = [("found", 1.0)]
    proxy.absent = set()
    proxy.sick_streams = set()
    proxy.flaky = 0.0
    faults.fails = 0.0
