"""What the outbox asks of the file system: files that the right people may use, and that last."""

from __future__ import annotations

import contextlib
import os
import stat

__all__ = ["create_or_open", "file_bytes", "make_folder", "sync_file", "sync_folder"]

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def create_or_open(path: str) -> int:
    """Open a file for reading and writing, making it where there is none; return its descriptor.

    A new file has mode 0600, or 0660 in a set-group-id folder, which is shared on
    purpose, whatever the caller's umask is.
    """
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, _FLAGS)
    folder = os.stat(os.path.dirname(path))
    mode = 0o660 if folder.st_mode & stat.S_ISGID else 0o600
    try:
        descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        # Another process was faster.
        return os.open(path, _FLAGS)
    os.fchmod(descriptor, mode)
    if os.geteuid() == 0:
        # As SQLite does for the files beside a database: a single command run as root must
        # not lock out those who use this folder.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor


def make_folder(folder: str) -> None:
    """Make a folder with those above it, mode 0700, and put their names on the disk."""
    missing: list[str] = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        sync_folder(os.path.dirname(path))


def sync_folder(folder: str) -> None:
    """Put the entries of a folder on the disk: a file is only as durable as its name."""
    sync_file(folder)


def sync_file(path: str) -> None:
    """Put the content of a file on the disk. Not for a SQLite file that this process has open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_bytes(path: str) -> int:
    """Return the size of a file, 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
