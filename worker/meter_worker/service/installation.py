"""What has to be done on this machine for the unit to run; what is done already is left out."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from meter_lib.errors import MeterError
from meter_worker.service.unit import ACCOUNT, FOLDER_MODE, STATE_FOLDER, UNIT_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meter_worker.service.unit import Unit

__all__ = ["Step", "check", "steps"]

# What ProtectHome keeps from the service.
_HOMES = ("/home/", "/root/", "/run/user/")


class Step(NamedTuple):
    """One thing to do."""

    words: str
    """A command, or what is done in its place."""
    do: Callable[[], object]


def check(unit: Unit) -> None:
    """Raise `MeterError` where the unit could not run on this machine."""
    # Both as it is named and as it is found: a link out of a home leads nowhere else.
    for python in (unit.python, os.path.realpath(unit.python)):
        if python.startswith(_HOMES):
            raise MeterError(
                f"{python} is in a home folder, which the service cannot reach: install meter-lib"
                " where every user can read it, such as python3 -m venv /opt/meter-lib"
            )


def steps(unit: Unit) -> list[Step]:
    """Return what is to be done, in order; nothing is changed yet.

    Each raises `MeterError` or `OSError` where it cannot be done; whatever was done before is
    left out the next time.
    """
    return [*_account(), *_folder(), *_unit_file(unit.text())]


def _account() -> Iterator[Step]:
    if not _is_known(grp.getgrnam):
        yield _command("groupadd", "--system", ACCOUNT)
    if not _is_known(pwd.getpwnam):
        yield _command(
            "useradd",
            "--system",
            "--gid",
            ACCOUNT,
            "--home-dir",
            STATE_FOLDER,
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
            ACCOUNT,
        )


def _folder() -> Iterator[Step]:
    with contextlib.suppress(FileNotFoundError, KeyError):
        found = os.lstat(STATE_FOLDER)
        if not stat.S_ISDIR(found.st_mode):
            raise MeterError(f"{STATE_FOLDER} must be a folder, and is something else")
        owners = pwd.getpwnam(ACCOUNT).pw_uid, grp.getgrnam(ACCOUNT).gr_gid
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owners, FOLDER_MODE):
            return
    yield Step(
        f"install -d -o {ACCOUNT} -g {ACCOUNT} -m {FOLDER_MODE:o} {STATE_FOLDER}", _make_folder
    )


def _unit_file(text: str) -> Iterator[Step]:
    with contextlib.suppress(FileNotFoundError), open(UNIT_PATH, encoding="utf-8") as file:
        if file.read() == text:
            return
    yield Step(f"write {UNIT_PATH}", lambda: _write(text))
    if os.path.isdir("/run/systemd/system"):  # else nobody is there to be told, as in a chroot
        yield _command("systemctl", "daemon-reload")


def _is_known(look_up: Callable[[str], object]) -> bool:
    try:
        look_up(ACCOUNT)
    except KeyError:
        return False
    return True


def _command(*words: str) -> Step:
    return Step(" ".join(words), lambda: _run(words))


def _run(words: tuple[str, ...]) -> None:
    # sbin is not on every PATH.
    program = shutil.which(words[0]) or shutil.which(words[0], path="/usr/sbin:/sbin")
    if program is None:
        raise MeterError(f"there is no {words[0]} on this machine: do as it would, then try again")
    ran = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)  # noqa: S603  # words of ours
    if ran.returncode:
        raise MeterError(f"{' '.join(words)} failed: {ran.stderr.strip() or ran.returncode}")


def _make_folder() -> None:
    os.makedirs(STATE_FOLDER, exist_ok=True)
    shutil.chown(STATE_FOLDER, ACCOUNT, ACCOUNT)
    os.chmod(STATE_FOLDER, FOLDER_MODE)  # after the owner, whose change takes the group bit away


def _write(text: str) -> None:
    # Beside its place and renamed, so that systemd never reads half of it.
    beside = f"{UNIT_PATH}.new"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(beside, 0o644)
    os.replace(beside, UNIT_PATH)
