"""A disk as a crash may leave it: what was synced is there, of the rest any part.

Not modelled is what no journal of a file system and no honest disk does: synced data that
changes, and writes torn within a sector.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

from meter_worker.torture.operations import ROOT, Enter, Leave, Resize, Sync, Write

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.torture.operations import Operation

__all__ = ["SECTOR_BYTES", "Change", "Disk", "Fate", "sectors"]

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""

Change = Write | Resize | Enter | Leave


class Fate(Protocol):
    """Decides what became of a change that was not synced."""

    def __call__(self, change: Change) -> bool | list[bool]:
        """Return whether it is on the disk; for a write perhaps sector by sector."""
        ...


class Disk:
    """Follows the operations one by one; at any point, `after_crash` tells what may be left."""

    def __init__(self) -> None:
        self._files: dict[int, bytearray] = {}
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._pending: dict[int, list[Change]] = {ROOT: []}

    def apply(self, operation: Operation) -> None:
        """Go on by one operation."""
        match operation:
            case Sync(before=before, node=None):
                for node in self._pending:
                    self._settle(node, before)
            case Sync(before=before, node=int(node)):
                self._settle(node, before)
            case Write(file=node) | Resize(file=node):
                self._pending[node].append(operation)
            case Enter(folder=folder, node=node, is_folder=is_folder):
                if node not in self._pending:
                    self._pending[node] = []
                    if is_folder:
                        self._folders[node] = {}
                    else:
                        self._files[node] = bytearray()
                self._pending[folder].append(operation)
            case Leave(folder=folder):
                self._pending[folder].append(operation)
            case _:
                pass

    @property
    def pending(self) -> list[Change]:
        """What was done and not synced, in order."""
        changes = [change for changes in self._pending.values() for change in changes]
        return sorted(changes, key=lambda change: change.at)

    def after_crash(self, fate: Fate) -> dict[str, bytes | None]:
        """Return the tree that is left: the content of each file by its path, None for folders."""
        files = {node: bytearray(content) for node, content in self._files.items()}
        folders = {node: dict(entries) for node, entries in self._folders.items()}
        for change in self.pending:
            _change(files, folders, change, fate(change))
        tree: dict[str, bytes | None] = {}
        _walk(files, folders, ROOT, "", tree.__setitem__)
        return tree

    def _settle(self, node: int, before: int) -> None:
        waiting: list[Change] = []
        for change in self._pending[node]:
            # What had not ended when the sync began may have come too late for it.
            if change.at < before:
                _change(self._files, self._folders, change, True)
            else:
                waiting.append(change)
        self._pending[node] = waiting


def _change(
    files: dict[int, bytearray],
    folders: dict[int, dict[str, int]],
    change: Change,
    fate: bool | list[bool],
) -> None:
    if not fate:
        return
    match change:
        case Write(file=file, offset=offset, data=data):
            _write(files[file], offset, data, fate)
        case Resize(file=file, size=size, only_grow=only_grow):
            content = files[file]
            if not only_grow:
                del content[size:]
            content.extend(bytes(max(0, size - len(content))))
        case Enter(folder=folder, name=name, node=node, instead_of=instead_of):
            folders[folder][name] = node
            if instead_of is not None:
                old_folder, old_name = instead_of
                folders[old_folder].pop(old_name, None)
        case Leave(folder=folder, name=name):
            folders[folder].pop(name, None)


def _write(content: bytearray, offset: int, data: bytes, fate: bool | list[bool]) -> None:
    # A file may have its new length before it has the bytes.
    content.extend(bytes(max(0, offset + len(data) - len(content))))
    if isinstance(fate, bool):
        content[offset : offset + len(data)] = data
        return
    for (start, end), kept in zip(sectors(offset, len(data)), fate, strict=True):
        if kept:
            content[start:end] = data[start - offset : end - offset]


def sectors(offset: int, length: int) -> list[tuple[int, int]]:
    """Return where each sector's share of such a write begins and ends."""
    end = offset + length
    cuts = [offset, *range(offset - offset % SECTOR_BYTES + SECTOR_BYTES, end, SECTOR_BYTES), end]
    return list(itertools.pairwise(cuts))


def _walk(
    files: dict[int, bytearray],
    folders: dict[int, dict[str, int]],
    folder: int,
    path: str,
    found: Callable[[str, bytes | None], None],
) -> None:
    for name, node in folders[folder].items():
        if node in folders:
            found(f"{path}{name}", None)
            _walk(files, folders, node, f"{path}{name}/", found)
        else:
            found(f"{path}{name}", bytes(files[node]))
