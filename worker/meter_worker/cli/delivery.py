"""`meter-lib worker` and `meter-lib flush`: what delivers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from meter_lib.errors import OutboxFull
from meter_lib.opening import open_outbox
from meter_lib.settings import Settings
from meter_worker.cli.options import delivery_options, outbox_options, settings_from
from meter_worker.cli.output import counted
from meter_worker.cli.values import Host, PositiveNumber
from meter_worker.logs import log_as_set

if TYPE_CHECKING:
    from meter_lib.outbox import OutboxStatus
    from meter_worker.metrics import Metrics

_LONGEST_TIMEOUT_SECONDS = 1_000_000


@click.command()
@click.option(
    "--no-wait",
    is_flag=True,
    help="Where another process delivers already, end with 1 instead of waiting for its end.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Port for Prometheus (/metrics) and for whoever asks whether it is well (/healthz);"
    " 0 takes a free one. Default: none.",
)
@click.option(
    "--metrics-host",
    type=Host(),
    default="127.0.0.1",
    show_default=True,
    help="Address of this machine for that port.",
)
@outbox_options
@delivery_options
def worker(
    *,
    no_wait: bool,
    metrics_port: int | None,
    metrics_host: str,
    config: str | None,
    **options: str | None,
) -> None:
    """Deliver what is recorded, until SIGTERM or SIGINT.

    An outbox file has one worker at a time: a second one waits, and takes over when the first has
    ended, however it ended; on a PostgreSQL server they share the work. A worker stops within 10
    seconds, whatever the backend does; what was under way is sent again later, under the same
    idempotency keys, and billed once. An outage is waited out. SIGHUP reads the settings file and
    the files of secrets again; settings that are wrong are refused, and the old ones stay. SIGUSR1
    tries again at once, unless the backend asked to wait.
    """
    from meter_worker.daemon import Worker  # noqa: PLC0415  # requests: 0.2 s to import

    def reload() -> Settings:
        given: dict[str, Any] = dict(options)  # as keywords of their own, for the type checkers
        again = Settings.load(config=config, **given)
        return log_as_set(lambda: again)  # only now: those that are refused change no log

    settings = log_as_set(lambda: settings_from(config, delivers=True, **options))
    metrics = None if metrics_port is None else _metrics()
    delivering = Worker(settings, reload, observe=metrics.observe if metrics else None)
    if no_wait:
        delivering.hold()
    with contextlib.ExitStack() as stack:
        if metrics is not None and metrics_port is not None:
            from meter_worker.metrics_server import MetricsServer  # noqa: PLC0415  # rarely needed

            stack.enter_context(
                MetricsServer(
                    metrics_host, metrics_port, metrics, delivering.look, delivering.pulse
                )
            )
        ended_well = delivering.run()
    if not ended_well:
        raise click.exceptions.Exit(1)


def _metrics() -> Metrics:
    try:
        from meter_worker.metrics import Metrics  # noqa: PLC0415  # of an extra
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise click.BadParameter(
            "it needs the extra 'metrics': pip install 'meter-lib[metrics]'",
            param_hint="'--metrics-port'",
        ) from error
    return Metrics()


@click.command()
@click.option(
    "--timeout",
    type=PositiveNumber(_LONGEST_TIMEOUT_SECONDS, or_zero=True),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="How long to try.",
)
@outbox_options
@delivery_options
def flush(*, timeout: float, config: str | None, **options: str | None) -> None:
    """Deliver what is pending now, then end.

    Ends with 0 if nothing is left pending. Where a worker delivers already, this waits for it to do
    so. An outage is waited out as long as --timeout allows. It ends early, with 1, when only events
    are left that the backend refused and that wait for proof whether for good: see meter-lib
    status.
    """
    from meter_worker.background import BackgroundFlusher  # noqa: PLC0415  # as above

    settings = log_as_set(lambda: settings_from(config, delivers=True, **options))
    with contextlib.closing(open_outbox(settings, read_only=True)) as outbox:
        # One that does not exist is not to be made. On a full disk there may be no room for a
        # look, until delivery gives up the reserve.
        with contextlib.suppress(OutboxFull):
            outbox.status()
        with BackgroundFlusher(settings=settings) as flusher:
            flusher.flush(timeout)
        status = outbox.status()
    click.echo(_left_pending(status))
    if status.pending:
        raise click.exceptions.Exit(1)


def _left_pending(status: OutboxStatus) -> str:
    if not status.pending:
        return "nothing is left pending"
    left = f"{counted(status.pending, 'event')} left pending"
    if status.refused:
        left += f", {status.refused:,} of them refused by the backend"
    return left
