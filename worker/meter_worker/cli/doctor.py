"""`meter-lib doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import click

from meter_lib.opening import open_outbox
from meter_worker.cli.options import delivery_options, json_option, outbox_options, settings_from
from meter_worker.cli.output import counted, print_json, print_table, progress_bar
from meter_worker.cli.values import PositiveNumber
from meter_worker.logs import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_lib import Settings
    from meter_worker.cli.output import Progress
    from meter_worker.doctor.finding import Finding

_LONGEST_TIMEOUT_SECONDS = 1_000_000


@click.command()
@click.option(
    "--salvage",
    is_flag=True,
    help="Set the outbox aside if it is damaged, and go on with what can be read of it. With FILE,"
    " take over what that outbox file holds.",
)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--timeout",
    type=PositiveNumber(_LONGEST_TIMEOUT_SECONDS),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="How long to look through the file.",
)
@json_option
@outbox_options
@delivery_options
def doctor(
    *,
    salvage: bool,
    file: str | None,
    timeout: float,
    as_json: bool,
    config: str | None,
    **options: str | None,
) -> None:
    """Look for what is wrong, and say what to do about it.

    Looks at the outbox and its disk, at the clock and the settings, and whether both services
    answer. Changes nothing and sends nothing, save with --salvage. Ends with 1 where something is
    at fault; a warning is none.
    """
    # requests: 0.2 s to import
    from meter_worker.doctor.examination import examine  # noqa: PLC0415  # see above
    from meter_worker.doctor.finding import worst  # noqa: PLC0415  # see above

    if file is not None and not salvage:
        raise click.UsageError("a FILE is only looked at with --salvage")
    load = functools.partial(settings_from, config, **_as_given(options))
    settings = load(delivers=False)
    if salvage:
        _salvage(settings, file)
    findings = list(examine(settings, lambda: load(delivers=True), seconds=timeout))
    verdict = worst(findings)
    if as_json:
        print_json({"verdict": verdict, "checks": [finding._asdict() for finding in findings]})
    else:
        _print(findings)
    if any(finding.name == "settings" and finding.verdict == "fault" for finding in findings):
        raise click.exceptions.Exit(2)
    if verdict == "fault":
        raise click.exceptions.Exit(1)


def _print(findings: list[Finding]) -> None:
    print_table(
        ("check", "verdict", "found"),
        [(finding.name, finding.verdict, finding.found) for finding in findings],
    )
    for verdict in ("fault", "warning"):
        for finding in findings:
            if finding.verdict == verdict:
                click.echo("\n" + escaped(f"{finding.name}: {finding.remedy}."))


def _salvage(settings: Settings, file: str | None) -> None:
    with contextlib.closing(open_outbox(settings)) as outbox:
        if file is None:
            was_damaged = outbox.salvage()
            text = (
                "was damaged: see above" if was_damaged else "is whole: there is nothing to salvage"
            )
            click.echo(escaped(f"{outbox.location} {text}"), err=True)
            return
        with contextlib.ExitStack() as stack:
            bars: list[Progress] = []

            def progress(events: int, of: int) -> None:
                if not bars:
                    bars.append(stack.enter_context(progress_bar(of, "Salvaging")))
                bars[0].update(events)

            taken = outbox.take_over(file, progress=progress)
    click.echo(
        escaped(
            f"{counted(taken.events, 'event')} of {file} went over;"
            f" {taken.there_already:,} were there already"
        ),
        err=True,
    )


def _as_given(options: Mapping[str, str | None]) -> dict[str, Any]:  # Any: as in settings_from
    """Return options that the type checkers do not take for other arguments."""
    return dict(options)
