"""The command line. Parses, calls one method of an object, prints; decides nothing itself."""

from meter_worker.cli.application import main

__all__ = ["main"]
