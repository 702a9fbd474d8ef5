"""The demo: usage recorded offline, delivered over a crash, and compared at the other end."""

from meter_worker.demo.story import run_demo

__all__ = ["run_demo"]
