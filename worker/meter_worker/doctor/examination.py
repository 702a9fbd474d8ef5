"""All checks, one after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.errors import InvalidSetting, MeterError, OutboxMissing, OutboxMoved
from meter_lib.opening import open_outbox
from meter_lib.setting_values import is_server_url
from meter_lib.settings import default_outboxes
from meter_worker.doctor.clock_check import check_clock
from meter_worker.doctor.file_checks import (
    check_file_system,
    check_permissions,
    check_space,
    outbox_files,
)
from meter_worker.doctor.finding import Finding
from meter_worker.doctor.link_checks import check_links
from meter_worker.doctor.outbox_checks import (
    check_books,
    check_copy,
    check_elsewhere,
    check_engine,
    check_integrity,
    check_set_aside,
    check_worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meter_lib.outbox import OutboxStatus
    from meter_lib.settings import Settings

__all__ = ["examine"]


def examine(
    settings: Settings, load_for_delivery: Callable[[], Settings], *, seconds: float
) -> Iterator[Finding]:
    """Yield what each check finds; nothing is changed and nothing is sent.

    `settings` are those that recording needs, `load_for_delivery` reads secrets and
    certificates too. Looking through the file takes about so many seconds at most.
    """
    yield from _outbox(settings, seconds)
    if not is_server_url(settings.outbox):
        yield check_permissions(settings.outbox)
        yield check_file_system(settings.outbox, allowed=settings.allow_network_fs)
        yield _space(settings)
    yield check_elsewhere(list(_others(settings)))
    system = SystemClock()
    clock = check_clock(system.now(), synchronised=system.is_synchronised())
    yield clock
    try:
        settings = load_for_delivery()
    except InvalidSetting as error:
        yield Finding(
            "settings", "fault", str(error), "the worker does not start until it is right"
        )
    else:
        yield _names(settings.strays)
    yield from check_links(settings, clock_is_right=clock.verdict == "ok")


def _outbox(settings: Settings, seconds: float) -> Iterator[Finding]:
    with contextlib.closing(open_outbox(settings, read_only=True)) as outbox:
        try:
            status = outbox.status()
            inspection = outbox.inspect(seconds=seconds)
        except OutboxMissing as error:
            yield Finding(
                "outbox",
                "fault",
                str(error),
                "nothing was recorded here yet, or it was elsewhere: see METER_OUTBOX",
            )
            return
        except OutboxMoved as error:
            yield Finding("outbox", "fault", str(error), "set METER_OUTBOX to the new place")
            return
        except MeterError as error:
            yield Finding(
                "outbox",
                "fault",
                str(error),
                "if it is damaged, the next post sets it aside and goes on with what can be read;"
                " meter-lib doctor --salvage does so now",
            )
            return
        yield Finding("outbox", "ok", f"{status.location}, schema {status.schema_version}")
        yield check_integrity(inspection)
        yield check_books(inspection)
        yield check_engine(inspection.engine)
        yield check_set_aside(status.set_aside)
        yield check_copy(status)
        yield check_worker(outbox.holder())


def _names(strays: Sequence[str]) -> Finding:
    """Return whether all that looks like a setting is one; that each can be meant is known."""
    if strays:
        remedy = "correct these names, or take them away: their values count for nothing"
        return Finding("settings", "warning", "; ".join(strays), remedy)
    return Finding("settings", "ok", "each can be meant, and each file they name can be read")


def _space(settings: Settings) -> Finding:
    folder = os.path.dirname(os.path.realpath(settings.outbox))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    used = sum(os.lstat(file).st_size for file in outbox_files(settings.outbox))
    return check_space(shutil.disk_usage(folder).free, used, settings.max_bytes)


def _others(settings: Settings) -> Iterator[OutboxStatus]:
    """Yield the outboxes at other default places that can be read and that no worker holds."""
    here = os.path.realpath(settings.outbox)
    for place in dict.fromkeys(map(os.path.realpath, default_outboxes())):
        if place == here:
            continue
        with (
            contextlib.suppress(MeterError),
            contextlib.closing(open_outbox(settings.with_outbox(place), read_only=True)) as outbox,
        ):
            status = outbox.status()
            if outbox.holder() is None:
                yield status
