"""What a recorded program did to the files of one folder, and what it said meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from meter_worker.torture.system_calls import calls_in, descriptor_in, texts_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meter_worker.torture.system_calls import Call, Descriptor

__all__ = [
    "CALLS",
    "ROOT",
    "Enter",
    "Leave",
    "Operation",
    "Resize",
    "Said",
    "Sync",
    "Write",
    "operations_in",
]

ROOT = 0
"""The number of the folder that was recorded. Whatever it will hold is numbered from 1."""


class Write(NamedTuple):
    """Bytes were put into a file."""

    at: int
    file: int
    offset: int
    data: bytes


class Resize(NamedTuple):
    """A file was cut, or lengthened with zeros."""

    at: int
    file: int
    size: int
    only_grow: bool = False


class Enter(NamedTuple):
    """A folder got an entry; one of that name was replaced. A rename also takes one away."""

    at: int
    folder: int
    name: str
    node: int
    is_folder: bool = False
    instead_of: tuple[int, str] | None = None


class Leave(NamedTuple):
    """A folder lost an entry."""

    at: int
    folder: int
    name: str


class Sync(NamedTuple):
    """What was done to a file or a folder `before` is on the disk; None stands for everything."""

    at: int
    before: int
    node: int | None


class Said(NamedTuple):
    """The program wrote to its standard output."""

    at: int
    text: str


Operation = Write | Resize | Enter | Leave | Sync | Said


def operations_in(lines: Iterable[str], root: str) -> list[Operation]:
    """Return what was done in the folder `root`, which was empty when the recording began.

    An operation counts from its end on, and what was said from the beginning: so no order
    is claimed that another process might have seen otherwise.
    """
    reader = _Reader(root)
    for call in calls_in(lines):
        _READERS[call.name](reader, call)
    return sorted(reader.operations, key=lambda operation: operation.at)


class _Reader:
    """Follows which file stands behind which name."""

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._nodes = {self._root: ROOT}
        self._gone: dict[str, int] = {}
        self._sizes: dict[int, int] = {}
        # Where the next write without an offset goes, by file and number of the descriptor.
        self._positions: dict[tuple[int, int], int] = {}
        self._next = 1
        self.operations: list[Operation] = []

    def open(self, call: Call) -> None:
        path = self._path(call.arguments)
        if path is None:
            return
        _, _, rest = call.arguments.partition('", ')
        if path not in self._nodes and "O_CREAT" in rest:
            self._enter(call, path, is_folder=False)
        node = self._nodes[path]
        if "O_TRUNC" in rest:
            self._resize(call, node, 0)
        number = descriptor_in(f"{call.result}{call.result_of}").number
        self._positions[node, number] = self._sizes.get(node, 0) if "O_APPEND" in rest else 0

    def write(self, call: Call) -> None:
        descriptor = descriptor_in(call.arguments)
        if descriptor.number == 1:
            text = b"".join(texts_in(call.arguments))[: call.result].decode()
            self.operations.append(Said(call.began, text))
            return
        node = self._node(descriptor)
        if node is not None:
            offset = self._positions.get((node, descriptor.number), 0)
            self._positions[node, descriptor.number] = offset + call.result
            self._put(call, node, offset)

    def write_at(self, call: Call) -> None:
        node = self._node(descriptor_in(call.arguments))
        if node is not None:
            # pwritev2 has its flags behind the offset.
            flagged = call.name == "pwritev2"
            self._put(call, node, int(call.arguments.split(", ")[-2 if flagged else -1], 0))

    def truncate(self, call: Call) -> None:
        node = self._node(descriptor_in(call.arguments))
        if node is not None:
            self._resize(call, node, int(call.arguments.split(", ")[1], 0))

    def allocate(self, call: Call) -> None:
        node = self._node(descriptor_in(call.arguments))
        if node is None:
            return
        _, mode, offset, length = call.arguments.split(", ")
        if mode == "0":
            end = int(offset, 0) + int(length, 0)
            self._sizes[node] = max(self._sizes.get(node, 0), end)
            self.operations.append(Resize(call.ended, node, end, only_grow=True))
        elif mode != "FALLOC_FL_KEEP_SIZE":
            raise ValueError(f"fallocate with {mode} is not understood")

    def sync(self, call: Call) -> None:
        node = self._node(descriptor_in(call.arguments))
        if node is not None:
            self.operations.append(Sync(call.ended, call.began, node))

    def sync_all(self, call: Call) -> None:
        self.operations.append(Sync(call.ended, call.began, None))

    def make_folder(self, call: Call) -> None:
        path = self._path(call.arguments)
        if path is not None:
            self._enter(call, path, is_folder=True)

    def remove(self, call: Call) -> None:
        path = self._path(call.arguments)
        if path is not None:
            self._gone[path] = self._nodes.pop(path)
            folder, name = os.path.split(path)
            self.operations.append(Leave(call.ended, self._nodes[folder], name))

    def link(self, call: Call) -> None:
        old, new = self._two_paths(call)
        if old in self._nodes and new is not None:
            self._nodes[new] = self._nodes[old]
            folder, name = os.path.split(new)
            self.operations.append(
                Enter(call.ended, self._nodes[folder], name, self._nodes[new], is_folder=False)
            )

    def rename(self, call: Call) -> None:
        old, new = self._two_paths(call)
        if (old is None) != (new is None):
            raise ValueError("a rename into or out of the recorded folder is not understood")
        if old is None or new is None or old == new:
            return
        node = self._nodes.pop(old)
        if new in self._nodes:
            self._gone[new] = self._nodes[new]
        self._nodes[new] = node
        folder, name = os.path.split(new)
        old_folder, old_name = os.path.split(old)
        self.operations.append(
            Enter(
                call.ended,
                self._nodes[folder],
                name,
                node,
                instead_of=(self._nodes[old_folder], old_name),
            )
        )

    def _put(self, call: Call, node: int, offset: int) -> None:
        data = b"".join(texts_in(call.arguments))[: call.result]
        self._sizes[node] = max(self._sizes.get(node, 0), offset + len(data))
        self.operations.append(Write(call.ended, node, offset, data))

    def _resize(self, call: Call, node: int, size: int) -> None:
        self._sizes[node] = size
        self.operations.append(Resize(call.ended, node, size))

    def _enter(self, call: Call, path: str, *, is_folder: bool) -> None:
        node, self._next = self._next, self._next + 1
        self._nodes[path] = node
        folder, name = os.path.split(path)
        self.operations.append(
            Enter(call.ended, self._nodes[folder], name, node, is_folder=is_folder)
        )

    def _node(self, descriptor: Descriptor) -> int | None:
        if descriptor.deleted:
            return self._gone.get(descriptor.path)
        return self._nodes.get(descriptor.path)

    def _path(self, arguments: str) -> str | None:
        """Return the path that a call names first, or None where it is not in our folder."""
        texts = texts_in(arguments)
        return self._inside(os.path.join(_folder_of(arguments), _decoded(texts[0])))

    def _two_paths(self, call: Call) -> tuple[str | None, str | None]:
        old, new = (_decoded(text) for text in texts_in(call.arguments))
        # The *at calls name a folder before each path; ours are absolute paths.
        return self._inside(old), self._inside(new)

    def _inside(self, path: str) -> str | None:
        path = os.path.normpath(path)
        inside = path.startswith(f"{self._root}/")
        # The shared-memory index is made anew after every crash.
        return path if inside and not path.endswith("-shm") else None


def _folder_of(arguments: str) -> str:
    return "" if arguments.startswith('"') else descriptor_in(arguments).path


def _decoded(path: bytes) -> str:
    return path.decode(errors="surrogateescape")


_READERS: dict[str, Callable[[_Reader, Call], None]] = {
    "open": _Reader.open,
    "openat": _Reader.open,
    "creat": _Reader.open,
    "write": _Reader.write,
    "writev": _Reader.write,
    "pwrite64": _Reader.write_at,
    "pwritev": _Reader.write_at,
    "pwritev2": _Reader.write_at,
    "ftruncate": _Reader.truncate,
    "fallocate": _Reader.allocate,
    "fsync": _Reader.sync,
    "fdatasync": _Reader.sync,
    "sync": _Reader.sync_all,
    "syncfs": _Reader.sync_all,
    "mkdir": _Reader.make_folder,
    "mkdirat": _Reader.make_folder,
    "unlink": _Reader.remove,
    "unlinkat": _Reader.remove,
    "rmdir": _Reader.remove,
    "link": _Reader.link,
    "linkat": _Reader.link,
    "rename": _Reader.rename,
    "renameat": _Reader.rename,
    "renameat2": _Reader.rename,
}

CALLS = tuple(_READERS)
"""The system calls that a recording must hold. Writing out ranges (sync_file_range) promises
nothing about a crash, so it is not among them."""
