"""Numbers and durations in words, for tables, logs and the service manager."""

from __future__ import annotations

__all__ = ["counted", "shown_seconds"]


def counted(number: int, noun: str) -> str:
    """Return `1 event`, `12,345 events`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown_seconds(seconds: float) -> str:
    """Return a duration for people, in its two largest units."""
    whole = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
