"""Where the outbox is, who may use it, and how much room there is."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from meter_lib.file_systems import file_system_type, is_network
from meter_worker.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_file_system", "check_permissions", "check_space", "outbox_files"]

_MIB = 2**20
_LEAST_FREE_BYTES = 4 * _MIB


def outbox_files(path: str) -> list[str]:
    """Return the files of an outbox that are there: the database, its log and its locks."""
    path = os.path.realpath(path)
    return [
        path + end
        for end in ("", "-wal", "-shm", ".lock", ".flusher")
        if os.path.lexists(path + end)
    ]


def check_permissions(path: str) -> Finding:
    """Say who may use the files: their user alone, or the group of a set-group-id folder."""
    folder = os.path.dirname(os.path.realpath(path))
    try:
        mode = os.stat(folder).st_mode
    except OSError as error:
        return Finding("permissions", "fault", f"{folder}: {error.strerror}", f"make {folder}")
    shared = bool(mode & stat.S_ISGID)
    denied = [
        name
        for name in [folder, *outbox_files(path)]
        if not os.access(name, os.R_OK | os.W_OK | (os.X_OK if name == folder else 0))
    ]
    if denied:
        user = _user(os.geteuid())
        return Finding(
            "permissions",
            "fault",
            f"{user} may not read and write {', '.join(denied)}",
            f"run this as the user that {folder} belongs to ({_user(os.stat(folder).st_uid)}),"
            " or make that folder one of a group that both belong to (mode 2770)",
        )
    open_to_others = list(_too_open(folder, path, shared=shared))
    if open_to_others:
        return Finding(
            "permissions",
            "warning",
            f"others than its {'group' if shared else 'user'} may use "
            + ", ".join(f"{name} ({found:04o})" for name, found, _ in open_to_others),
            "; ".join(f"chmod {right:04o} {name}" for name, _, right in open_to_others),
        )
    return Finding(
        "permissions", "ok", f"for {'the group of the folder' if shared else 'its user'} alone"
    )


def _too_open(folder: str, path: str, *, shared: bool) -> Iterator[tuple[str, int, int]]:
    """Yield what more people may use than should: its name, its mode, the right mode."""
    for name in [folder, *outbox_files(path)]:
        mode = stat.S_IMODE(os.stat(name).st_mode)
        right = (0o2770 if shared else 0o700) if name == folder else (0o660 if shared else 0o600)
        if mode & 0o777 & ~right:
            yield name, mode, right


def _user(number: int) -> str:
    import pwd  # noqa: PLC0415  # needed for a name in a message only

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def check_file_system(path: str, *, allowed: bool) -> Finding:
    """Say on which kind of file system the outbox is."""
    kind = file_system_type(path)
    if not kind:
        return Finding("file system", "ok", "this system does not tell its type")
    if not is_network(kind):
        return Finding("file system", "ok", kind)
    return Finding(
        "file system",
        "warning" if allowed else "fault",
        f"{kind}, a network file system, where no promise of ours holds"
        + (" (allowed by METER_ALLOW_NETWORK_FS)" if allowed else ""),
        "set METER_OUTBOX to a path on a disk of this device",
    )


def check_space(free_bytes: int, used_bytes: int, max_bytes: int) -> Finding:
    """Say whether the disk has the room that the outbox may take by its limit."""
    wanted = max(0, max_bytes - used_bytes)
    found = (
        f"{free_bytes // _MIB:,} MiB free; the outbox has {used_bytes // 1024:,} KiB of the"
        f" {max_bytes // _MIB:,} MiB that it may take"
    )
    if free_bytes < _LEAST_FREE_BYTES and wanted:
        return Finding("free space", "fault", found, "make room: events are about to be refused")
    if free_bytes < wanted:
        return Finding(
            "free space",
            "warning",
            found,
            "the disk will be full before the outbox is: make room, or lower METER_MAX_BYTES",
        )
    return Finding("free space", "ok", found)
