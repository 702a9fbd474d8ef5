"""Runs a posting program on a SQLite that syncs nothing: `python dishonest.py WHAT OUTBOX ...`."""

from __future__ import annotations

import functools
import os
import re
import runpy
import sqlite3
from typing import Any


class _NeverSynced(sqlite3.Connection):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        super().execute("PRAGMA synchronous = OFF")

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute(re.sub(r"(PRAGMA synchronous =) \w+", r"\1 OFF", sql), *parameters)


def _not_synced(descriptor: int) -> None:
    del descriptor


sqlite3.connect = functools.partial(sqlite3.connect, factory=_NeverSynced)
os.fsync = os.fdatasync = _not_synced
runpy.run_module("meter_worker.torture.posting", run_name="__main__", alter_sys=True)
