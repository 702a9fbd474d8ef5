"""Prints the recorded week of a plausible device, the same to the byte on every run and Python.

    python tests/data/generate.py > tests/data/week.jsonl

Chance comes from `random.random()` alone: its sequence for a seed is promised, what `choice` and
`shuffle` make of it is not.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import datetime, timezone

# Times are milliseconds, as in the API.
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
MONDAY = int(datetime(2026, 10, 26, tzinfo=timezone.utc).timestamp()) * SECOND
FRIDAY, SATURDAY, SUNDAY = MONDAY + 4 * DAY, MONDAY + 5 * DAY, MONDAY + 6 * DAY
WEEK_ENDS_AT = MONDAY + 7 * DAY

Source = tuple[str, str]  # tenant_id, device_id
GATEWAY = ("hansa-versicherung", "hh-gateway-1")
BRANCH = ("hansa-versicherung", "Prüfstelle 3/Süd")
SCANNER = ("hansa-versicherung", "hh-scanner-2")
LAW_FIRM = ("kanzlei-voss", "hh-gateway-1")  # a second tenant behind the same gateway
SOURCES = (GATEWAY, BRANCH, SCANNER, LAW_FIRM)
SHARES = (GATEWAY,) * 16 + (BRANCH,) * 2 + (SCANNER, LAW_FIRM)  # of twenty events

# What an office day brings: how many events, and the most units in one of them.
OFFICE_DAY = {
    "page.processed.basic": (430, 48),
    "page.processed.advanced": (110, 18),
    "report.generated.small": (50, 3),
    "report.generated.medium": (24, 2),
    "report.generated.large": (8, 1),
    "report.generated.dataquery": (30, 4),
    "report.generated.insights": (16, 1),
    "rule.executed.small": (190, 5),
    "rule.executed.medium": (60, 3),
    "rule.executed.large": (14, 1),
    "template.processed.small": (70, 9),
    "template.processed.medium": (25, 6),
    "template.processed.large": (8, 3),
}
# What the month's end adds: so many days' work of one family within the hour that begins then.
BURSTS = {
    "rule": (FRIDAY + 16 * HOUR, 8),
    "report": (FRIDAY + 20 * HOUR, 9),
    "template": (SATURDAY + 2 * HOUR, 14),
}

# Names as people give them: the combining accents, the line separator and the empty name are meant.
DOCUMENTS = (
    "Kündigung Müller & Söhne (Straße 5, größere Änderung).docx",
    "請求書「2026年10月」最終版.pdf",
    "تقرير المطالبات أكتوبر.pdf",
    "📄 Foto vom Unfall 👩🏽‍🔧🚗.jpeg",
    "Re\u0301sume\u0301 Zoe\u0308 A\u030angstro\u0308m.docx",
    'C:\\Scans\\Eingang\\"neu"\\0001.tif',
    "Seite 1\nSeite 2\tRückseite.txt",
    "Anschreiben\u2028Zweite Zeile.txt",
    "",
)
NOTES = (
    'Betrag > 10 000 € und "Frist" < 3 Tage',
    "regex: ^\\d{4}-\\d{2}$ \\ 'strict'",
    "erste Zeile\nzweite Zeile\r\ndritte Zeile",
    "承認待ち",
)

chance = random.Random(20261026)  # noqa: S311 - chosen for being repeatable, nothing is secret
recorded: list[tuple[int, dict[str, object]]] = []


def between(low: int, high: int) -> int:
    """Either bound may come out."""
    return low + int(chance.random() * (high - low + 1))


def one_of(texts: tuple[str, ...]) -> str:
    """Each of them equally often."""
    return texts[between(0, len(texts) - 1)]


def one_in(number: int) -> bool:
    """Whether it is this one in so many."""
    return between(1, number) == 1


def record(at: int, where: Source, meter_id: str, units: int | None = None, **rest: object) -> None:
    """Note one event; with units it is of a volume meter and says by its timestamp when it was."""
    event = {"tenant_id": where[0], "device_id": where[1], "meter_id": meter_id}
    volume = {} if units is None else {"total_usage": units, "timestamp": at}
    recorded.append((at, {**event, **volume, **rest}))


def metadata_of(meter_id: str, where: Source, batch_id: str) -> dict[str, object]:
    """What an application would add: the document, report, rule or template, and its batch."""
    family = meter_id.partition(".")[0]
    metadata: dict[str, object] = {"batch_id": batch_id}
    if family == "page":
        metadata["document"] = one_of(DOCUMENTS) if one_in(9) else f"scan{between(1, 9999):04}.pdf"
        if one_in(8):
            metadata |= {"duplex": one_in(2), "blank": between(0, 9), "skew": between(0, 99) / 100}
    else:
        metadata[f"{family}_id"] = f"{family}-{between(0, 0xFFFFFF):06x}"
        if meter_id.endswith("insights") and one_in(5):
            metadata["summary"] = " ".join(one_of(NOTES) for _ in range(between(10, 60)))
        elif one_in(12):
            metadata["note"] = one_of(NOTES)
    if where == LAW_FIRM:
        metadata["Aktenzeichen"] = f"{between(1, 30)} O {between(1, 400)}/26"
    return metadata


def work(at: int, meter_id: str, batch_id: str) -> None:
    """One event of the office's work; every third has no metadata, one in a hundred no units."""
    where = SHARES[between(0, len(SHARES) - 1)]
    units = 0 if one_in(100) else between(1, OFFICE_DAY[meter_id][1])
    rest = {} if one_in(3) else {"metadata": metadata_of(meter_id, where, batch_id)}
    record(at, where, meter_id, units, **rest)


def time_of_day() -> int:
    """From 07:00 to 17:00 UTC and mostly about noon, but once in fifty at any hour."""
    if one_in(50):
        return between(0, DAY - 1)
    return 7 * HOUR + between(0, 5 * HOUR) + between(0, 5 * HOUR - 1)


def chat(at: int) -> None:
    """A session and its queries; one in thirty is never ended, as when a browser is just closed."""
    where = SHARES[between(0, len(SHARES) - 1)]
    session = {"session_id": f"session-{between(0, 0xFFFFFF):06x}"}
    record(at, where, "chat.on.time_hours", start_time=at, metadata=session)
    for number in range(1, between(1, 6) + 1):
        query = {**session, "query_id": str(number)}
        at += between(4 * SECOND, 3 * MINUTE)
        record(at, where, "chat.query.time_secs", start_time=at, metadata=query)
        at += between(600, 25 * SECOND)
        record(at, where, "chat.query.time_secs", end_time=at, metadata=query)
    if not one_in(30):
        at += between(10 * SECOND, 40 * MINUTE)
        record(at, where, "chat.on.time_hours", end_time=at, metadata=session)


def record_days() -> None:
    """Five office days and a quiet weekend, each with its measurements before midnight."""
    stored_gb = {GATEWAY: 1480, BRANCH: 212, SCANNER: 97, LAW_FIRM: 35}
    for day in range(7):
        midnight, part = MONDAY + day * DAY, 1 if day < 5 else 20
        for meter_id, (events, _) in OFFICE_DAY.items():
            for _ in range(events // part):
                at = time_of_day()
                work(midnight + at, meter_id, f"batch-{day + 1}-{at // HOUR:02d}")
        for _ in range(45 // part):
            chat(midnight + time_of_day())
        for where in SOURCES:
            at = midnight + DAY - 10 * MINUTE
            stored_gb[where] += between(0, 6)
            primary = {"volume": "primary"}
            record(at, where, "document.storage.size_gb", stored_gb[where], metadata=primary)
            record(at + MINUTE, where, "template.processed.count", between(0, 140))


def record_month_end() -> None:
    """Bursts, invoices with the caller's own keys, and single events at the very edge of a day."""
    for family, (begins_at, days) in BURSTS.items():
        for meter_id, (events, _) in OFFICE_DAY.items():
            for _ in range(events * days if meter_id.startswith(f"{family}.") else 0):
                work(begins_at + between(0, HOUR - 1), meter_id, f"{family}-month-end")
    for number in range(1, 13):
        key = f"invoice-2026-10-{number:04d}"
        at, where = SATURDAY + 8 * HOUR + number * 90 * SECOND, GATEWAY if number < 10 else LAW_FIRM
        invoice = {"metadata": {"report_id": key}, "idempotency_key": key}
        record(at, where, "report.generated.large", 1, **invoice)
    films = {"document": "Mikrofilm 1987-1994"}
    record(SATURDAY + 11 * HOUR, SCANNER, "page.processed.basic", 1_250_000, metadata=films)
    archive = {"volume": "archive", "unit": "byte"}
    record(SUNDAY - 1, SCANNER, "document.storage.size_gb", 7_215_545_057_280, metadata=archive)
    for number, where in enumerate(SOURCES, start=1):
        key = f"template-setup-2027-{number}"
        record(SUNDAY, where, "template.licensed.total", 40 * number, idempotency_key=key)
    for _ in range(12):
        chat(WEEK_ENDS_AT - between(1, 15 * MINUTE))


if __name__ == "__main__":
    record_days()
    record_month_end()
    recorded.sort(key=lambda event: event[0])
    for happened_at, event in recorded:
        # What would happen after the week is left out, so some sessions are still open at its end.
        if happened_at < WEEK_ENDS_AT:
            # Bytes, so that neither the locale nor the platform's line ends have a say.
            sys.stdout.buffer.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
