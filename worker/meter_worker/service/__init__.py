"""The worker as a service of systemd: its unit, and what it takes to install it."""

from meter_worker.service.installation import Step, check, steps
from meter_worker.service.unit import Unit

__all__ = ["Step", "Unit", "check", "steps"]
