"""Which machine this is, as far as that can be known for certain."""

from __future__ import annotations

import os
import re

from meter_lib.file_systems import file_system_type
from meter_lib.usage import digest

__all__ = ["machine"]

_MACHINE_ID = "/etc/machine-id"
# There where the machine id is made anew at each boot, the root file system being read-only.
_TRANSIENT_MACHINE_ID = "/run/machine-id"
# Boards have one; a card that is copied with its machine id is told from its original by it.
_BOARD_SERIAL = "/proc/device-tree/serial-number"
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_CONTAINER_ROOTS = frozenset({"overlay", "fuse.fuse-overlayfs"})


def machine() -> str | None:
    """Return a name that this machine has, after a restart too, and no other: a digest.

    None where there is nothing that one could rely on: in a container, whose machine id is
    that of its image or changes with each start, and where the system keeps none.
    """
    if (
        any(map(os.path.exists, (*_CONTAINER_MARKS, _TRANSIENT_MACHINE_ID)))
        or file_system_type("/") in _CONTAINER_ROOTS
    ):
        return None
    machine_id = _content(_MACHINE_ID)
    if re.fullmatch(r"[0-9a-f]{32}", machine_id) is None:
        return None
    # Not as it is: machine-id(5) wants it kept from whoever gets a file of ours to see.
    return digest(f"meter-lib {machine_id} {_content(_BOARD_SERIAL)}").hex()


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1024).strip().strip("\0")
    except OSError:
        return ""
