"""How users call the library, for the type checkers only: never run."""

from __future__ import annotations

from pathlib import Path

from meter_lib import (
    METERS,
    Meter,
    MeterClient,
    MeterError,
    Receipt,
    Settings,
    post_ai_meter_usage,
    post_meter_usage,
)
from meter_worker import BackgroundFlusher


def record() -> None:
    """Post in each of the ways that the documentation shows."""
    receipt: Receipt | None = post_meter_usage("tenant", "device", "meter", 24)
    if receipt is not None:
        key: str = receipt["idempotency_key"]
        post_meter_usage("tenant", "device", "meter", total_usage=1, idempotency_key=key)
    post_meter_usage("tenant", "device", "meter", start_time=1, end_time=2, timestamp=3)
    post_ai_meter_usage("tenant", "device", "meter", start_time=1, metadata={"session": "s"})
    post_meter_usage("t", "d", "m", 1, metadata={"text": "x", "flag": True, "n": 1, "x": 0.5})


def client() -> None:
    """Use the client with its settings, its errors and its session."""
    settings = Settings(outbox="outbox.db", batch_size=100)
    try:
        with MeterClient(settings=settings) as meters, MeterClient(Path("other.db")) as other:
            meters.post("tenant", "device", "meter", 1)
            receipts: list[Receipt] = other.post_many([{"tenant_id": "tenant"}])
            with meters.session("tenant", "device", "meter") as started:
                time: int = started["event_time"]
                assert time, receipts
    except MeterError as error:
        raise SystemExit(str(error)) from error


def deliver() -> bool:
    """Embed the flusher."""
    with BackgroundFlusher(settings=Settings(read_timeout=10.5)) as flusher:
        done: bool = flusher.flush(timeout=5)
        return done


def catalogue() -> list[str]:
    """Read the catalogue."""
    first: Meter = METERS[0]
    return [first.id, *(meter.description for meter in METERS if meter.type == "volume")]
