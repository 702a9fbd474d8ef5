"""The catalogue of the meters that the backend is known to bill.

The backend has the last word: it may know more of them, so an id that is missing here is warned
about, never refused.
"""

import logging
from typing import Literal, NamedTuple

from meter_lib.usage import shown

__all__ = ["METERS", "Meter", "warn_once_if_unknown"]

logger = logging.getLogger("meter_lib")


class Meter(NamedTuple):
    """What is counted under one meter id."""

    id: str
    name: str
    type: Literal["volume", "performance"]  # a number of units, or time between start and end
    description: str


METERS: tuple[Meter, ...] = (
    Meter(
        "page.processed.basic",
        "Basic Document Scanning",
        "volume",
        "Total number of basic pages processed",
    ),
    Meter(
        "page.processed.advanced",
        "Advanced Document Scanning",
        "volume",
        "Total number of advanced pages processed",
    ),
    Meter(
        "report.generated.small",
        "Small Report Generation",
        "volume",
        "Total number of small reports generated",
    ),
    Meter(
        "report.generated.medium",
        "Medium Report Generation",
        "volume",
        "Total number of medium reports generated",
    ),
    Meter(
        "report.generated.large",
        "Large Report Generation",
        "volume",
        "Total number of large reports generated",
    ),
    Meter(
        "report.generated.dataquery",
        "Data Query Report Generation",
        "volume",
        "Total number of data query reports generated",
    ),
    Meter(
        "report.generated.insights",
        "Insights Report Generation",
        "volume",
        "Total number of insights reports generated",
    ),
    Meter(
        "rule.executed.small",
        "Small Rule Execution",
        "volume",
        "Total number of rules executed with runtime less than 1 minute",
    ),
    Meter(
        "rule.executed.medium",
        "Medium Rule Execution",
        "volume",
        "Total number of rules executed with runtime between 1 and 3 minutes",
    ),
    Meter(
        "rule.executed.large",
        "Large Rule Execution",
        "volume",
        "Total number of rules executed with runtime greater than 4 minutes",
    ),
    Meter(
        "chat.on.time_hours",
        "Litewave AI Assistant Usage (Hours)",
        "performance",
        "Total active chat usage time in hours",
    ),
    Meter(
        "chat.query.time_secs",
        "Litewave AI Assistant Query Time (Seconds)",
        "performance",
        "Total time spent per query in seconds",
    ),
    Meter(
        "document.storage.size_gb",
        "Document Storage Size",
        "volume",
        "Total document storage consumed in GB",
    ),
    Meter(
        "template.processed.small",
        "Small Template Processing",
        "volume",
        "Total number of small templates processed",
    ),
    Meter(
        "template.processed.medium",
        "Medium Template Processing",
        "volume",
        "Total number of medium templates processed",
    ),
    Meter(
        "template.processed.large",
        "Large Template Processing",
        "volume",
        "Total number of large templates processed",
    ),
    Meter(
        "template.processed.count",
        "Template Licensing Count",
        "volume",
        "Total number of licensed templates processed",
    ),
    Meter(
        "template.licensed.total",
        "Yearly Template Setup",
        "volume",
        "Total yearly template setup count",
    ),
)

# A program that makes meter ids up as it goes must not fill the host's memory or its log.
MOST_WARNINGS = 1_000

_known = frozenset(meter.id for meter in METERS)
_warned: dict[str, object] = {}


def warn_once_if_unknown(meter_id: str) -> None:
    """Log a warning the first time that this process uses a meter id outside the catalogue."""
    if meter_id in _known or meter_id in _warned or len(_warned) >= MOST_WARNINGS:
        return
    mine = object()
    if _warned.setdefault(meter_id, mine) is not mine:
        return  # another thread was first: setdefault is atomic
    logger.warning(
        "meter id %s is not in the catalogue of known meters: its usage is recorded all the same,"
        " but check the spelling",
        shown(meter_id, most=300),
        extra={"event": "meter_unknown", "meter_id": meter_id},
    )
    if len(_warned) == MOST_WARNINGS:
        logger.warning(
            "these were %d unknown meter ids: no further ones are warned about",
            MOST_WARNINGS,
            extra={"event": "meters_unknown"},
        )
