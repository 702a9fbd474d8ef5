"""What a shell is told when TAB is pressed: the names that fit, and never an error."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from meter_lib import METERS, MeterError, Settings
from meter_lib.letters import Selector
from meter_lib.opening import open_outbox
from meter_worker.reasons import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import click

    from meter_lib.letters import DeadLetter, PendingEvent
    from meter_lib.outbox import Operations

__all__ = ["complete_letter", "complete_meter", "complete_pending", "complete_reason"]

# Whoever has more looks for them by other means: TAB must not take long.
_OLDEST = Selector(limit=200)


def complete_meter(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the known meters."""
    del ctx, param
    return [
        CompletionItem(meter.id, help=meter.name)
        for meter in METERS
        if meter.id.startswith(incomplete)
    ]


def complete_reason(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the reasons of dead letters."""
    del ctx, param
    return [
        CompletionItem(reason.slug, help=reason.meaning)
        for reason in REASONS
        if reason.slug.startswith(incomplete)
    ]


def complete_letter(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the keys of dead letters."""
    del param
    return _keys(ctx, lambda outbox: outbox.dead_letters(_OLDEST), incomplete)


def complete_pending(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the keys of pending events."""
    del param
    return _keys(ctx, lambda outbox: outbox.pending_events(_OLDEST), incomplete)


def _keys(
    ctx: click.Context,
    read: Callable[[Operations], Iterable[DeadLetter | PendingEvent]],
    incomplete: str,
) -> list[CompletionItem]:
    """Return the keys in the outbox that the options so far name; none where there is a problem."""
    logging.disable()  # the process ends with its answer to the shell
    outbox, config = ctx.params.get("outbox"), ctx.params.get("config")
    try:
        settings = Settings.load(config=config, outbox=outbox, delivers=False)
        with contextlib.closing(open_outbox(settings, read_only=True)) as opened:
            keys = [event.idempotency_key for event in read(opened)]
    except MeterError:
        return []
    return [CompletionItem(key) for key in keys if key.startswith(incomplete)]
