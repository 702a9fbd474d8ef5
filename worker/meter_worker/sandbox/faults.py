"""What can go wrong on purpose. One small class a fault; building one checks its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meter_worker.sandbox.produce import ProduceRecord

_LONGEST_WAIT = 86_400  # seconds: a day
_HOWS = ("text", "short", "empty", "missing_offsets", "fewer_offsets")


def require(condition: bool, complaint: str) -> None:
    """Raise ValueError with the complaint where the condition does not hold."""
    if not condition:
        raise ValueError(complaint)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < float("inf")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_header_text(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


@dataclass(frozen=True, slots=True)
class Down:
    """The connection is reset and no answer given; nothing is stored."""


@dataclass(frozen=True, slots=True)
class Slow:
    """The request is carried out and answered, but only after so many seconds."""

    seconds: float

    def __post_init__(self) -> None:
        """Check the wait."""
        in_range = _is_seconds(self.seconds) and self.seconds <= _LONGEST_WAIT
        require(in_range, "seconds is 0 to 86400")


@dataclass(frozen=True, slots=True)
class Stall:
    """The request is taken and never answered nor stored."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The whole request is answered with an error; nothing is stored."""

    status: int
    message: str = "refused by the sandbox"
    error_code: int | None = None

    def __post_init__(self) -> None:
        """Check that it is an error."""
        require(_is_int(self.status) and 400 <= self.status <= 599, "status is 400 to 599")
        require(_is_text(self.message), "message is text")
        require(self.error_code is None or _is_int(self.error_code), "error_code is a number")


@dataclass(frozen=True, slots=True)
class Throttle:
    """The request is answered 429; text in `retry_after` goes out as it is."""

    retry_after: float | str | None = None

    def __post_init__(self) -> None:
        """Check that it can be a header."""
        wait = self.retry_after
        require(
            wait is None or _is_header_text(wait) or _is_seconds(wait),
            "retry_after is a number of seconds, or printable ASCII text, or null for none",
        )


@dataclass(frozen=True, slots=True)
class DropReply:
    """Everything is carried out and stored, then the connection is reset without an answer."""


@dataclass(frozen=True, slots=True)
class CaptivePortal:
    """Somebody else answers: 200 and a login page; nothing is stored."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Somebody else answers: 302 to another place; nothing is stored."""

    location: str

    def __post_init__(self) -> None:
        """Check that it can be a header."""
        require(_is_header_text(self.location), "location is printable ASCII text")


@dataclass(frozen=True, slots=True)
class Garbled:
    """200 with a body that cannot be believed; the records are stored only if `stored`."""

    how: str = "text"
    stored: bool = False

    def __post_init__(self) -> None:
        """Check that there is such a way."""
        require(self.how in _HOWS, f"how is one of {', '.join(_HOWS)}")
        require(self.stored in (True, False), "stored is true or false")


@dataclass(frozen=True, slots=True)
class _Matching:
    """Picks records by members of their value; all the named ones have to be equal."""

    match: dict[str, Any]

    def __post_init__(self) -> None:
        """Check that something is named."""
        named = _is_object(self.match) and bool(self.match)
        require(named, 'match names members of the value, such as {"meter_id": "m"}')

    def matches(self, record: ProduceRecord) -> bool:
        """Tell whether the record is one of those meant."""
        return all(record.member(name) == value for name, value in self.match.items())


@dataclass(frozen=True, slots=True)
class RejectRecords(_Matching):
    """The matching records get an error of their own, the others are stored."""

    # Confluent's, for what cannot be retried; Karapace's 1 stands for time-outs as well.
    error_code: int = 50002
    error: str = "rejected by the sandbox"

    def __post_init__(self) -> None:
        """Check the error too."""
        _Matching.__post_init__(self)
        require(_is_int(self.error_code), "error_code is a number")
        require(_is_text(self.error), "error is text")


@dataclass(frozen=True, slots=True)
class RefuseRecords(_Matching):
    """A request with a matching record is refused as a whole; nothing of it is stored."""


Behaviour = (
    Down
    | Slow
    | Stall
    | Refuse
    | Throttle
    | DropReply
    | CaptivePortal
    | Redirect
    | Garbled
    | RejectRecords
    | RefuseRecords
)

BEHAVIOURS: dict[str, type[Behaviour]] = {
    "down": Down,
    "slow": Slow,
    "stall": Stall,
    "refuse": Refuse,
    "throttle": Throttle,
    "drop_reply": DropReply,
    "captive_portal": CaptivePortal,
    "redirect": Redirect,
    "garbled": Garbled,
    "reject_records": RejectRecords,
    "refuse_records": RefuseRecords,
}
