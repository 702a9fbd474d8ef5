from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Answered,
    Delivered,
    Refused,
    Rejected,
    Retriable,
    Undecided,
)
from tests.fakes import keys, values
from tests.unit.flusher_bench import (
    DOWN,
    LATE,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.backend import AccountAnswer, Outcome, Request, Verdict
    from tests.unit.flusher_bench import Bench


class Weather:
    """A backend and an accounts API in all their moods, drawn from a seed."""

    def __init__(self, seed: int, bad: set[str]) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - no secret
        self.bad = bad
        self.refused_alone: dict[str, list[int]] = defaultdict(list)
        self.touched: set[str] = set()
        """Those that the backend itself has not accepted at some time, alone or in company."""
        self.accepted: list[str] = []
        self.clear = False

    def deliver(self, request: Request) -> Outcome:
        """Answer in the mood of the moment."""
        mood = (
            "karapace"
            if self.clear
            else self.draw.choice(
                ["good", "good", "good", "karapace", "strict", "down", "late", "busy", "denied"]
            )
        )
        sent = keys(request)
        if mood in ("down", "late"):
            return LATE if mood == "late" else DOWN
        if mood == "strict" and any(key in self.bad for key in sent):
            self.touched.update(sent)
            if len(sent) == 1:
                self.refused_alone[sent[0]].append(len(self.accepted))
            return Refused("rejected", "no")
        verdicts: list[Verdict] = []
        for value in values(request):
            key = value["idempotency_key"]
            if key in self.bad:
                verdicts.append(Rejected("rejected", "no"))
                if len(sent) == 1:
                    self.refused_alone[key].append(len(self.accepted))
            elif mood == "busy" and self.draw.random() < 0.2:
                verdicts.append(Retriable("busy"))
            elif mood == "denied" and self.draw.random() < 0.2:
                verdicts.append(Undecided())
            else:
                verdicts.append(Delivered())
                self.accepted.append(key)
                continue
            self.touched.add(key)
        return Answered(
            tuple(verdicts), DOWN if any(isinstance(v, Undecided) for v in verdicts) else None
        )

    def look_up(self, tenant_id: str) -> AccountAnswer:
        """Answer in the mood of the moment."""
        mood = "good" if self.clear else self.draw.choice(["good", "good", "down", "unknown"])
        if mood == "unknown":
            return AccountUnknown("no")
        return DOWN if mood == "down" else AccountFound(json.dumps(tenant_id))


@pytest.mark.parametrize("seed", range(12))
def test_in_any_weather_nothing_is_lost_reordered_or_wrongly_given_up(
    bench_with: Callable[..., Bench], seed: int
) -> None:
    """Whatever happens in whatever order, with restarts between, the promises hold."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    bench = bench_with(batch_size=draw.choice([3, 10, 50]), max_attempts=10_000)
    bad = {f"e{number}" for number in range(300) if draw.random() < draw.choice([0.0, 0.02, 0.3])}
    weather = Weather(seed, bad)
    bench.backend.otherwise = weather.deliver
    bench.accounts.look_up = weather.look_up  # type: ignore[method-assign]
    streams: dict[str, str] = {}
    for number in range(300):
        key, tenant, meter = f"e{number}", draw.choice("abc"), draw.choice("mn")
        streams[key] = tenant + meter
        bench.post(key, tenant_id=tenant, meter_id=meter)
        if draw.random() < 0.3:
            bench.flush()
            bench.clock.advance(draw.choice([0, 1, 30]))
            status = bench.outbox.status()
            assert status.accepted == status.pending + status.dead + status.delivered == number + 1
        if draw.random() < 0.05:
            bench.restarted()
    weather.clear = True
    bench.live(3600, step=20)
    bench.post("last", tenant_id="a", meter_id="m")
    bench.live(3600, step=20)

    assert bench.counts == {
        "pending": 0,
        "dead": len(bad),
        "delivered": 301 - len(bad),
        "refused": 0,
    }
    assert {key for key, _ in bench.dead} == bad
    for key in bad:
        first, *_, last = weather.refused_alone[key]
        assert first < last, "an event was accepted between two lone refusals"
    stored = bench.backend.stored_keys
    assert len(stored) == len(set(stored))
    first_arrivals = dict.fromkeys(key for batch in bench.backend.sent for key in batch)
    unblamed = [key for key in stored if key not in weather.touched]
    for stream in set(streams.values()):
        for arrived in (first_arrivals, unblamed):
            numbers = [int(key[1:]) for key in arrived if streams.get(key) == stream]
            assert numbers == sorted(numbers)
