"""Makes syncs slow in a program: builds a library to preload, and says how to start with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["slow_disk"]

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "slow_disk.c")


def slow_disk(folder: str, milliseconds: float) -> Mapping[str, str] | None:
    """Return the environment in which each sync takes so much longer, or None without a compiler.

    The library is built into `folder`.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = os.path.join(folder, "slow_disk.so")
    if not os.path.exists(library):
        command = [compiler, "-O2", "-fPIC", "-shared", "-o", library, _SOURCE, "-ldl"]
        subprocess.run(command, check=True)
    return {"LD_PRELOAD": library, "SLOW_DISK_MS": str(milliseconds)}
