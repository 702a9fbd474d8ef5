"""`meter-lib torture`: whether this device keeps what it acknowledges."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from meter_lib.setting_values import is_server_url
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import counted, print_fields, print_json, progress_bar
from meter_worker.logs import escaped

if TYPE_CHECKING:
    from meter_worker.torture.run import Report

_MOST = 1_000_000


@click.command()
@click.option(
    "--kills",
    type=click.IntRange(0, _MOST),
    default=100,
    show_default=True,
    help="How many posting processes to kill at random moments.",
)
@click.option(
    "--images",
    type=click.IntRange(0, _MOST),
    default=1000,
    show_default=True,
    help="How many power cuts to work out from recorded file operations. Needs strace.",
)
@click.option(
    "--folder",
    type=click.Path(),
    help="Folder to make, work in and remove. Default: a new one beside the outbox.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=1,
    show_default=True,
    help="What the random moments follow from.",
)
@json_option
@outbox_options
def torture(
    *,
    kills: int,
    images: int,
    folder: str | None,
    seed: int,
    as_json: bool,
    outbox: str | None,
    config: str | None,
) -> None:
    """Try whether this device keeps what it acknowledges.

    Posting processes are killed at random moments, and from a recording of what others do to
    their files it is worked out what a power cut may leave of them. Your outbox is not touched:
    it all happens in a new folder, which is removed. What no program can try is whether the disk
    tells the truth about having written: pull the plug for that.
    """
    from meter_worker.torture.failure import TortureFailed  # noqa: PLC0415  # only needed here
    from meter_worker.torture.run import torture as run  # noqa: PLC0415  # see above

    live = settings_from(config, outbox=outbox).outbox
    if is_server_url(live):
        raise click.UsageError("it tries the disk of this device, and the outbox is on a server")
    folder = folder or os.path.join(_nearest_folder(live), f"meter-torture-{os.getpid()}")
    with progress_bar(kills + images, "Torturing") as bar:
        try:
            report = run(
                folder, outbox=live, kills=kills, images=images, seed=seed, progress=bar.update
            )
        except TortureFailed as error:
            raise click.ClickException(str(error)) from error
    if as_json:
        print_json(_as_json(report, seed))
    else:
        _print(report)
    if not report.passed:
        raise click.exceptions.Exit(1)


def _nearest_folder(outbox: str) -> str:
    """Return the folder of the outbox, or the one above it that is there before its first event."""
    folder = os.path.dirname(outbox)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _as_json(report: Report, seed: int) -> dict[str, Any]:  # Any: what JSON can carry
    return {
        **report._asdict(),
        "file_system": report.file_system._asdict(),
        "sync_milliseconds": report.sync_milliseconds._asdict(),
        "seed": seed,
        "passed": report.passed,
    }


def _print(report: Report) -> None:
    median, p99 = report.sync_milliseconds
    system = report.file_system
    where = f"{system.type} ({system.options})" if system.type else "not known"
    images = f"{report.images:,}"
    print_fields(
        [
            ("machine", report.machine),
            ("engine", report.engine),
            ("file system", where),
            ("a sync takes", f"{median:.2f} ms, one in a hundred {p99:.2f} ms or more"),
            ("kills", f"{report.kills:,}, {report.killed_acknowledged:,} events acknowledged"),
            ("power cuts", images if report.why_no_images is None else report.why_no_images),
            ("lost", f"{report.lost:,}"),
        ]
    )
    for fault in report.faults:
        click.echo(escaped(fault))
    if report.passed:
        click.echo("\nEverything that was acknowledged is there.")
    else:
        click.echo(
            f"\n{counted(report.lost, 'acknowledged event')} lost,"
            f" {counted(len(report.faults), 'other fault')}: do not trust this device with usage"
            " before the cause is known."
        )
