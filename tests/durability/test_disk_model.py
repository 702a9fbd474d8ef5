"""What a recording is taken to say, and what a crash may leave: the rules, one by one."""

from __future__ import annotations

import pytest

from meter_worker.torture.disk import Disk
from meter_worker.torture.images import images_of
from meter_worker.torture.operations import (
    ROOT,
    Enter,
    Leave,
    Operation,
    Resize,
    Said,
    Sync,
    Write,
    operations_in,
)

A = Enter(1, ROOT, "a", 1)


def left(operations: list[Operation], *kept: int) -> dict[str, bytes | None]:
    """The files after a crash that kept the unsynced changes that ended at these moments."""
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return disk.after_crash(lambda change: change.at in kept)


def test_what_is_not_synced_may_be_gone() -> None:
    """A file needs its content synced, and its folder for its name."""
    written = [A, Write(2, 1, 0, b"text")]
    content, name = Sync(4, 3, 1), Sync(6, 5, ROOT)
    assert left(written) == {}
    assert left([*written, content]) == {}
    assert left([*written, name]) == {"a": b""}
    assert left([*written, content, name]) == {"a": b"text"}


def test_unsynced_changes_are_kept_in_any_combination() -> None:
    """A later write may be on the disk without an earlier one, before which there are zeros."""
    synced = [A, Sync(3, 2, ROOT)]
    changes = [Write(4, 1, 0, b"ab"), Write(5, 1, 2, b"cd"), Resize(6, 1, 1)]
    assert left([*synced, *changes], 5) == {"a": b"\0\0cd"}
    assert left([*synced, *changes], 4, 5) == {"a": b"abcd"}
    assert left([*synced, *changes], 4, 6) == {"a": b"a"}


def test_a_sync_covers_only_what_had_ended_when_it_began() -> None:
    """A write that another thread made during a sync may have come too late for it."""
    operations = [A, Sync(3, 2, ROOT), Write(5, 1, 0, b"during"), Sync(6, 4, 1)]
    assert left(operations) == {"a": b""}
    assert left([*operations, Sync(8, 7, 1)]) == {"a": b"during"}


def test_a_write_is_torn_between_sectors() -> None:
    """Of a write, each sector is on the disk or is not."""
    disk = Disk()
    for operation in (A, Sync(3, 2, ROOT), Write(4, 1, 500, b"x" * 600)):
        disk.apply(operation)
    content = bytes(512) + b"x" * 512 + bytes(76)
    assert disk.after_crash(lambda _: [False, True, False]) == {"a": content}


def test_a_rename_is_there_whole_or_not_at_all() -> None:
    """After a rename that was not synced the file has its old name or its new one."""
    renamed = Enter(4, ROOT, "b", 1, instead_of=(ROOT, "a"))
    assert left([A, Sync(3, 2, ROOT), renamed]) == {"a": b""}
    assert left([A, Sync(3, 2, ROOT), renamed], 4) == {"b": b""}


def test_a_file_that_was_removed_may_be_back() -> None:
    """Until the folder is synced, a removed file may be there again, and a new one not yet."""
    synced = [A, Write(2, 1, 0, b"old"), Sync(4, 3, 1), Sync(6, 5, ROOT)]
    changes = [Leave(7, ROOT, "a"), Enter(8, ROOT, "a", 2)]
    assert left([*synced, *changes]) == {"a": b"old"}
    assert left([*synced, *changes], 7) == {}
    assert left([*synced, *changes], 8) == {"a": b""}


def x(text: str) -> str:
    """A text as strace -xx shows it."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def test_calls_are_read_in_the_order_of_their_ends() -> None:
    """Two processes at once: a write counts from its end, a receipt from its beginning."""
    file = f"<{x('/r/a')}>"
    lines = [
        f'7 openat(AT_FDCWD<{x("/")}>, "{x("/r/a")}", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3{file}',
        f'7 pwrite64(3{file}, "{x("abc")}", 3, 10 <unfinished ...>',
        f"8 fdatasync(4{file} <unfinished ...>",
        "7 <... pwrite64 resumed>) = 2",
        "8 <... fdatasync resumed>) = 0",
        f'7 write(1<{x("/dev/null")}>, "{x("ack k")}", 5 <unfinished ...>',
        f'8 unlink("{x("/r/a")}") = 0',
        "7 <... write resumed>) = 5",
        f'8 write(4{file}(deleted), "{x("z")}", 1) = 1',
        f"8 fsync(4{file}(deleted)) = -1 EIO (Input/output error)",
        f'8 openat(AT_FDCWD<{x("/")}>, "{x("/r/b-shm")}", O_CREAT, 0600) = 5<{x("/r/b-shm")}>',
        f'8 openat(AT_FDCWD<{x("/")}>, "{x("/other")}", O_RDWR|O_CREAT, 0600) = 6<{x("/other")}>',
        "8 --- SIGCHLD {si_signo=SIGCHLD} ---",
        "8 +++ exited with 0 +++",
    ]
    assert operations_in(lines, "/r") == [
        Enter(0, ROOT, "a", 1),
        Write(3, 1, 10, b"ab"),
        Sync(4, 2, 1),
        Said(5, "ack k"),
        Leave(6, ROOT, "a"),
        Write(8, 1, 0, b"z"),
    ]


def test_a_text_cut_short_is_not_taken_for_whole() -> None:
    """A recording that does not hold every byte is refused."""
    with pytest.raises(ValueError, match="cut short"):
        operations_in([f'7 write(1<{x("pipe")}>, "{x("a")}"..., 9) = 9'], "/r")


def test_images_follow_from_the_seed() -> None:
    """The same seed gives the same images, another one gives others."""
    operations: list[Operation] = [A]
    for at in range(2, 40, 2):
        operations += [Write(at, 1, at, b"x" * 700), Said(at + 1, f"ack k{at}")]

    def images(seed: int) -> list[str]:
        return [str(image) for image in images_of(operations, count=20, seed=seed)]

    assert images(1) == images(1) != images(2)
