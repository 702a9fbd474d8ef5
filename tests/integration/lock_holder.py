"""Another process that holds the write lock of an outbox."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HOLDER = """
import sys
from meter_lib._sqlite.file_lock import FairLock
lock = FairLock(f"{sys.argv[1]}.lock", f"{sys.argv[1]}.turn")
assert lock.acquire(10)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def write_lock_held(outbox_path: str) -> Iterator[Callable[[], None]]:
    """Let another process hold the lock until the end of the block, or until what it yields."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, outbox_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def release() -> None:
        holder.communicate()

    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield release
    finally:
        if holder.poll() is None:
            release()
        assert holder.returncode == 0
