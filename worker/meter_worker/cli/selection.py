"""Which events an operator means: from options to what exactly they chose."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from meter_lib.letters import DeadLetter, PendingEvent, Selector
from meter_worker.cli.completing import (
    complete_letter,
    complete_meter,
    complete_pending,
    complete_reason,
)
from meter_worker.cli.values import Instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meter_lib.outbox import Operations

__all__ = ["Search", "Selection", "say_unknown", "selector_from", "selector_options"]

_Command = TypeVar("_Command", bound="Callable[..., Any]")  # Any: each takes its own options
_Event = TypeVar("_Event", DeadLetter, PendingEvent)


def selector_options(things: str, *, reason: bool = False) -> Callable[[_Command], _Command]:
    """Return what adds KEY... and the options that select `things`, such as dead letters."""

    def with_options(command: _Command) -> _Command:
        # Dead letters have reasons, pending events have none.
        for option in reversed(_options(things, complete_letter if reason else complete_pending)):
            command = option(command)
        if reason:
            command = click.option(
                "--reason",
                metavar="REASON",
                shell_complete=complete_reason,
                help="Those with this reason.",
            )(command)
        return command

    return with_options


def _options(
    things: str, complete_key: Callable[..., Any]
) -> Sequence[Callable[[Any], Any]]:  # Any: as above
    return (
        click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_key),
        click.option("--all", "everything", is_flag=True, help=f"All {things}."),
        click.option("--tenant", "tenant_id", metavar="ID", help="Those of a tenant."),
        click.option("--device", "device_id", metavar="ID", help="Those of a device."),
        click.option(
            "--meter",
            "meter_id",
            metavar="ID",
            shell_complete=complete_meter,
            help="Those of a meter.",
        ),
        click.option(
            "--since",
            type=Instant(),
            metavar="INSTANT",
            help="Those of usage at this time (ms, or ISO 8601 in UTC) or later.",
        ),
        click.option(
            "--until",
            type=Instant(),
            metavar="INSTANT",
            help="Those of usage before this time.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="At most so many, the oldest first.",
        ),
    )


def selector_from(*, everything: bool, needed: bool, **selectors: Any) -> Selector:
    """Return what was selected; options of several kinds must all fit.

    Where one is `needed`, selecting nothing is wrong: all must be asked for. Raises
    `click.UsageError`.
    """
    selector = Selector(**selectors)
    nothing_selected = selector == Selector()
    if everything and not nothing_selected and selector != Selector(limit=selector.limit):
        raise click.UsageError("--all cannot be combined with what selects only some")
    if needed and nothing_selected and not everything:
        raise click.UsageError(
            "nothing is selected: give KEY, --all, --tenant, --device, --meter, --reason,"
            " --since, --until or --limit"
        )
    since, until = selector.since, selector.until
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--until must be later than --since")
    return selector


class Search(Generic[_Event]):
    """Goes through what fits a selector, once; knows then which keys it has not come by."""

    def __init__(self, read: Callable[[Selector], Iterator[_Event]], selector: Selector) -> None:
        self._read: Callable[[Selector], Iterator[_Event]] = read
        self._selector = selector
        self._missing = set(selector.keys)

    def events(self) -> Iterator[_Event]:
        """Yield them, oldest first, in memory that does not grow with their number."""
        for event in self._read(self._selector):
            self._missing.discard(event.idempotency_key)
            yield event

    def end(self, thing: str) -> None:
        """Say which keys are unknown, and end the command with 1 where there are any."""
        # With a limit, a key may well be there and not be reached.
        if self._selector.limit is None and say_unknown(sorted(self._missing), thing):
            raise click.exceptions.Exit(1)


def say_unknown(keys: Sequence[str], thing: str) -> bool:
    """Say that there is no such thing under these keys; return whether there are any."""
    for key in keys:
        click.echo(f"there is no {thing} {key!r} among those selected", err=True)
    return bool(keys)


class Selection:
    """The dead letters that fitted a selector at one time: later ones are not among them.

    Each is given to `look` once, as it is found.
    """

    def __init__(
        self,
        outbox: Operations,
        selector: Selector,
        look: Callable[[DeadLetter], object] | None = None,
    ) -> None:
        self._outbox = outbox
        self._selector = selector
        self.seqs = array("q")  # 8 bytes each: a million of them are no burden
        missing = set(selector.keys)
        for letter in outbox.dead_letters(selector):
            if look is not None:
                look(letter)
            self.seqs.append(letter.seq)
            missing.discard(letter.idempotency_key)
        # With a limit, a key may well be there and not be reached.
        self.unknown_keys = sorted(missing) if selector.limit is None else []

    def __len__(self) -> int:
        return len(self.seqs)

    def letters(self) -> Iterator[DeadLetter]:
        """Yield those that are still there."""
        for letter in self._outbox.dead_letters(self._selector):
            index = bisect_left(self.seqs, letter.seq)
            if index < len(self.seqs) and self.seqs[index] == letter.seq:
                yield letter
