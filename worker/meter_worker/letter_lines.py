"""Dead letters as lines of a file: what an export wrote, an import takes in."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from meter_lib.arguments import FIRST_TIME, LAST_TIME, shown
from meter_lib.errors import InvalidUsage, InvalidUsageType
from meter_lib.letters import ImportedLetter
from meter_lib.usage import UsageEvent, session_event, usage_event
from meter_worker.importing import FileImport, json_of_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_lib.clock import Clock
    from meter_lib.outbox import Operations

__all__ = ["LetterImport"]

_CONTENT = ("tenant_id", "device_id", "meter_id", "total_usage", "start_time", "end_time")
_NEEDED = ("idempotency_key", "tenant_id", "device_id", "meter_id", "event_time", "reason")
_FIELDS = frozenset(
    (*_CONTENT, *_NEEDED, "metadata", "seq", "detail", "attempts", "dead_at", "replays")
) | {"customer_id"}
_MOST_REASON_CHARACTERS = 64
_MOST_DETAIL_CHARACTERS = 4096
_MOST_CUSTOMER_CHARACTERS = 1024
_MOST_COUNT = 2**31 - 1


class LetterImport(FileImport[ImportedLetter]):
    """Takes in lines that are dead letters, with the fields of a list of them as JSON."""

    def __init__(self, outbox: Operations, clock: Clock) -> None:
        super().__init__()
        self._outbox = outbox
        self._clock = clock

    def parse(self, content: bytes) -> ImportedLetter:
        """Return the dead letter of a line."""
        return _letter(json_of_line(content), now=self._clock.now())

    def take(self, entries: list[ImportedLetter]) -> list[bool]:
        """Accept dead letters; those whose key is known are not new."""
        return self._outbox.import_letters(entries, now=self._clock.now())


def _letter(said: Any, *, now: int) -> ImportedLetter:  # Any: JSON, looked at here
    if not isinstance(said, dict):
        raise InvalidUsageType(f"the dead letter is {shown(said)}: it must be a JSON object")
    unknown = [name for name in said if name not in _FIELDS]
    if unknown:
        raise InvalidUsage(f"there is no field {shown(unknown[0])} in a dead letter")
    missing = [name for name in _NEEDED if said.get(name) is None]
    if missing:
        raise InvalidUsage(f"{' and '.join(missing)} must be given")
    return ImportedLetter(
        event=_event(said),
        event_time=_count(said, "event_time", most=LAST_TIME),
        attempts=_count(said, "attempts"),
        reason=_text(said, "reason", _MOST_REASON_CHARACTERS),
        detail=_text(said, "detail", _MOST_DETAIL_CHARACTERS),
        dead_at=_count(said, "dead_at", most=LAST_TIME, default=now),
        replays=_count(said, "replays"),
        customer_id=_customer(said.get("customer_id")),
    )


def _event(said: Mapping[str, Any]) -> UsageEvent:  # Any: as above
    # Any: the library looks at each of them.
    content: dict[str, Any] = {name: said.get(name) for name in _CONTENT}
    metadata, key = said.get("metadata"), said["idempotency_key"]
    times = [time for time in (content["start_time"], content["end_time"]) if time is not None]
    by_own_clock = all(type(time) is int for time in times) and min(times, default=0) < FIRST_TIME
    if times and by_own_clock and content["total_usage"] is None and not metadata:
        # The library's own clock was believed when it was recorded, even in 1970.
        del content["total_usage"]
        checked = usage_event("t", "d", "m", 0, idempotency_key=key)
        return session_event(**content)._replace(idempotency_key=checked.idempotency_key)
    return usage_event(**content, metadata=metadata, idempotency_key=key)


def _count(said: Mapping[str, Any], name: str, *, most: int = _MOST_COUNT, default: int = 0) -> int:
    value = said.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidUsage(f"{name} is {shown(value)}: it must be an integer from 0 to {most}")
    return value


def _text(said: Mapping[str, Any], name: str, most: int) -> str:
    value = said.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > most:
        raise InvalidUsage(
            f"{name} is {shown(value)}: it must be text of at most {most} characters"
        )
    # No UTF-8 can carry a lone surrogate, which JSON can write.
    return value.encode(errors="replace").decode()


def _customer(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise InvalidUsageType(f"customer_id is {shown(value)}: it must be text or an integer")
    text = json.dumps(value, ensure_ascii=False)  # as it is kept of an account
    if re.search("[\ud800-\udfff]", text):
        raise InvalidUsage("customer_id must not hold lone surrogates, which no UTF-8 can carry")
    if len(text) > _MOST_CUSTOMER_CHARACTERS:
        raise InvalidUsage(
            f"customer_id is {shown(value)}: it must not be longer than"
            f" {_MOST_CUSTOMER_CHARACTERS} characters"
        )
    return text
