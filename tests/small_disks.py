"""Small file systems that are really there: mounted for one test, and surely gone after it."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 2**20


def done(*command: str) -> bool:
    """Run a command of the system and return whether it worked."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _mounted(kind: str, folder: Path, disk: Path, *, mib: int, block_bytes: int) -> bool:
    if kind == "tmpfs":
        return done("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(disk))
    with (folder / "image").open("wb") as image:
        # A third more: what ext4 keeps for itself.
        image.truncate(mib * MIB * 4 // 3)
    # No blocks are kept for root, who runs this.
    blocks = ("-b", str(block_bytes), "-m", "0")
    made = done("mkfs.ext4", "-q", *blocks, str(folder / "image"))
    return made and done("mount", "-o", "loop", str(folder / "image"), str(disk))


@contextlib.contextmanager
def small_disk(
    kind: str, folder: Path, *, mib: int = 12, block_bytes: int = 4096
) -> Iterator[Path]:
    """A file system of some `mib` MiB, or skip the test where there can be none."""
    place = folder / "disk"
    place.mkdir()
    if not _mounted(kind, folder, place, mib=mib, block_bytes=block_bytes):
        pytest.skip(f"no {kind} can be mounted: that needs root, and a system that lets it")
    try:
        yield place
    finally:
        # Lazily: it is gone from the tree even where a file of it is still open somewhere.
        assert done("umount", "--lazy", str(place))
