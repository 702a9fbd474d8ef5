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
    apost_ai_meter_usage,
    apost_meter_usage,
    metered,
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


@metered("tenant", "device", "pages", units=1)
def print_page(text: str, *, copies: int = 1) -> list[str]:
    """Be metered by the call."""
    return [text] * copies


@metered("tenant", "device", "pages", units=len)
async def print_pages(*texts: str) -> list[str]:
    """Be metered by the result."""
    return list(texts)


@metered("tenant", "device", "time", client=MeterClient(settings=Settings()))
def think() -> None:
    """Be metered by the time it takes."""


@metered("tenant", "device", "pages", units=lambda pages: 2 * len(pages))
def scan() -> list[str]:
    """Be metered by what a function of one's own makes of the result."""
    return []


async def in_an_event_loop() -> None:
    """Use the twins for event loops, and call what is metered as if it were not."""
    receipt: Receipt | None = await apost_meter_usage("t", "d", "m", 24, metadata={"flag": True})
    await apost_ai_meter_usage("t", "d", "m", start_time=1, idempotency_key="k")
    async with MeterClient() as meters:
        posted: Receipt = await meters.apost("t", "d", "m", 1, timestamp=3)
        receipts: list[Receipt] = await meters.apost_many([{"tenant_id": "t"}])
        async with meters.asession("t", "d", "m") as started:
            time: int = started["event_time"]
        await meters.aclose()
    pages: list[str] = print_page("text", copies=2)
    more: list[str] = await print_pages("a", "b")
    think()
    assert receipt, (posted, receipts, time, pages, more)


def what_is_wrong() -> None:
    """Be refused by the type checkers: each line here would be told if it were not wrong."""
    print_page(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    metered("t", "d", "m", units="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def deliver() -> bool:
    """Embed the flusher."""
    with BackgroundFlusher(settings=Settings(read_timeout=10.5)) as flusher:
        done: bool = flusher.flush(timeout=5)
        return done


def catalogue() -> list[str]:
    """Read the catalogue."""
    first: Meter = METERS[0]
    return [first.id, *(meter.description for meter in METERS if meter.type == "volume")]
