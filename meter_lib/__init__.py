"""RECORD: what a producer of usage imports. Standard library only.

from meter_lib import post_meter_usage

post_meter_usage("tenant-1", "device-1", "page.processed.basic", total_usage=24)
"""

from meter_lib._api import (
    apost_ai_meter_usage,
    apost_meter_usage,
    post_ai_meter_usage,
    post_meter_usage,
)
from meter_lib._version import __version__
from meter_lib.client import MeterClient
from meter_lib.errors import (
    InvalidSetting,
    InvalidUsage,
    InvalidUsageType,
    KeyConflict,
    MeterError,
    OutboxFull,
    OutboxHeld,
    OutboxMissing,
    OutboxMoved,
    OutboxUnavailable,
    SchemaTooNew,
)
from meter_lib.metering import metered
from meter_lib.meters import METERS, Meter
from meter_lib.recording import Receipt
from meter_lib.settings import Settings

__all__ = [
    "METERS",
    "InvalidSetting",
    "InvalidUsage",
    "InvalidUsageType",
    "KeyConflict",
    "Meter",
    "MeterClient",
    "MeterError",
    "OutboxFull",
    "OutboxHeld",
    "OutboxMissing",
    "OutboxMoved",
    "OutboxUnavailable",
    "Receipt",
    "SchemaTooNew",
    "Settings",
    "__version__",
    "apost_ai_meter_usage",
    "apost_meter_usage",
    "metered",
    "post_ai_meter_usage",
    "post_meter_usage",
]
