"""Which faults stand, whom they are meant for, and which of them strikes a request."""

from __future__ import annotations

import threading
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from meter_worker.sandbox.faults import (
    BEHAVIOURS,
    Behaviour,
    RefuseRecords,
    RejectRecords,
    require,
)
from meter_worker.sandbox.produce import EVERYBODY, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_worker.sandbox.produce import ProduceRecord

Api = Literal["events", "accounts", "other"]
_APIS = ("events", "accounts", "all")
_FAULTS_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Fault:
    """A behaviour, and which requests it is meant for: skips `after`, then strikes `times`."""

    fault: str
    behaviour: Behaviour
    times: int | None = None
    after: int = 0
    api: str = "events"
    tenant: str | None = None
    device: str | None = None
    meter: str | None = None

    def __post_init__(self) -> None:
        """Check the members that every fault has."""
        require(self.times is None or _is_count(self.times, 1), "times is 1 or more, or null")
        require(_is_count(self.after, 0), "after is 0 or more")
        require(self.api in _APIS, f"api is one of {', '.join(_APIS)}")
        for name in ("tenant", "device", "meter"):
            require(isinstance(getattr(self, name), str | None), f"{name} is text")

    def is_meant_for(
        self, api: Api, subjects: Sequence[Subject], records: Sequence[ProduceRecord]
    ) -> bool:
        """Tell whether a request to this API, about these subjects, may be struck."""
        if self.api not in ("all", api):
            return False
        if isinstance(self.behaviour, RejectRecords | RefuseRecords) and not any(
            map(self.behaviour.matches, records)
        ):
            return False
        wanted = Subject(self.tenant, self.device, self.meter)
        return wanted == EVERYBODY or any(subject.fits(wanted) for subject in subjects)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_COMMON = frozenset(f.name for f in fields(Fault)) - {"behaviour"}


def fault_from(members: object) -> Fault:
    """Make a fault of a JSON object; raises ValueError that says which member is wrong."""
    if not isinstance(members, dict):
        raise ValueError('a fault is an object such as {"fault": "down"}')  # noqa: TRY004 - any bad fault is a ValueError
    given: dict[str, Any] = members
    name = given.get("fault")
    if not isinstance(name, str) or name not in BEHAVIOURS:
        raise ValueError(f"unknown fault {name!r}; there are {', '.join(BEHAVIOURS)}")
    behaviour = BEHAVIOURS[name]
    parameters = {key: value for key, value in given.items() if key not in _COMMON}
    known = {f.name: f.default is MISSING for f in fields(behaviour)}
    for key in parameters.keys() - known.keys():
        takes = ", ".join([*known, *sorted(_COMMON)])
        raise ValueError(f"{name}: unknown parameter {key!r}; it takes {takes}")
    for key, required in known.items():
        require(key in parameters or not required, f"{name}: the parameter {key!r} is missing")
    common = {key: value for key, value in given.items() if key in _COMMON}
    try:
        return Fault(behaviour=behaviour(**parameters), **common)
    except ValueError as wrong:
        raise ValueError(f"{name}: {wrong}") from None


def faults_from(given: object) -> list[Fault]:
    """Make faults of a JSON list; raises ValueError that says which one is wrong, and in what."""
    if not isinstance(given, list):
        raise ValueError('the faults are a list such as [{"fault": "down"}]')  # noqa: TRY004 - see fault_from
    return [_fault_at(position, members) for position, members in enumerate(given, start=1)]


def _fault_at(position: int, members: object) -> Fault:
    try:
        return fault_from(members)
    except ValueError as wrong:
        raise ValueError(f"fault {position}: {wrong}") from None


class FaultBoard:
    """The standing faults in their order; the first that is meant for a request strikes it.

    Thread-safe. A fault that has struck as often as it may stays listed until it is healed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing: list[_Standing] = []

    def add(self, fault: Fault) -> None:
        """Put a fault behind those that stand already."""
        with self._lock:
            require(len(self._standing) < _FAULTS_LIMIT, f"no more than {_FAULTS_LIMIT} faults")
            self._standing.append(_Standing(fault))

    def replace(self, faults: Sequence[Fault]) -> None:
        """Let these faults stand instead of those before; their counts begin anew."""
        require(len(faults) <= _FAULTS_LIMIT, f"no more than {_FAULTS_LIMIT} faults")
        with self._lock:
            self._standing = [_Standing(fault) for fault in faults]

    def strike(
        self, api: Api, subjects: Sequence[Subject], records: Sequence[ProduceRecord]
    ) -> Behaviour | None:
        """Say which behaviour strikes this request, and count it; None where none does.

        A fault counts only those requests that no fault before it has struck.
        """
        with self._lock:
            for standing in self._standing:
                fault = standing.fault
                if standing.struck == fault.times:
                    continue
                if not fault.is_meant_for(api, subjects, records):
                    continue
                if standing.skipped < fault.after:
                    standing.skipped += 1
                    continue
                standing.struck += 1
                return fault.behaviour
        return None

    def as_json(self) -> list[dict[str, Any]]:
        """List the standing faults as they were given, and how many requests each has struck."""
        with self._lock:
            return [standing.as_json() for standing in self._standing]


@dataclass(slots=True)
class _Standing:
    fault: Fault
    skipped: int = 0
    struck: int = 0

    def as_json(self) -> dict[str, Any]:
        common = asdict(self.fault)
        del common["behaviour"]
        return common | asdict(self.fault.behaviour) | {"struck": self.struck}
