"""The types of option values: what text means, and what is wrong with it."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import socket
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from meter_lib.usage import shown

if TYPE_CHECKING:
    from meter_lib.settings import Setting

    _ParamType = click.ParamType[Any]  # Any: as click's own methods declare values
else:
    _ParamType = click.ParamType  # generic only in later versions of click

__all__ = ["Entry", "Host", "Instant", "JsonObject", "PositiveNumber", "SettingText"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    r"(?:([Zz])|([+-])(\d\d):?(\d\d)?)?)?",
    re.ASCII,
)


_LIKELY_MISTAKES = (8, 10)  # digits


class SettingText(_ParamType):
    """The text of a setting, checked by the setting's own rule."""

    def __init__(self, setting: Setting[Any]) -> None:  # Any: each setting has its own type
        self.name = "path" if setting.is_file else "text"
        self._setting = setting

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: as click declares it, here and below
        """Return the text as it is: the settings parse it once more, together with the others."""
        try:
            self._setting.parse(value)
        except ValueError as error:
            self.fail(str(self._setting.refusal(value, str(error))), param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return that a file is meant, where one is."""
        del ctx, param
        return [CompletionItem(incomplete, type="file")] if self._setting.is_file else []


class Instant(_ParamType):
    """An instant, in milliseconds since 1970 or as ISO 8601; without a zone it is UTC."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return milliseconds since 1970."""
        if isinstance(value, int):
            return value
        # A device may believe in 1970. But a date without hyphens, and seconds, are mistakes.
        if re.fullmatch(r"\d{1,13}", value, re.ASCII) and len(value) not in _LIKELY_MISTAKES:
            return int(value)
        milliseconds = _iso_milliseconds(value)
        if milliseconds is None:
            self.fail(
                f"{shown(value)} is no instant: give milliseconds since 1970 (13 digits today) or"
                " ISO 8601, such as 2026-11-01 or 2026-11-01T08:30Z",
                param,
                ctx,
            )
        return milliseconds


def _iso_milliseconds(text: str) -> int | None:
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    *numbers, fraction, _, sign, zone_hours, zone_minutes = match.groups()
    milliseconds = int((fraction or "").ljust(3, "0")[:3])
    ahead = dt.timedelta(hours=int(zone_hours or 0), minutes=int(zone_minutes or 0))
    try:
        year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
        zone = dt.timezone(-ahead if sign == "-" else ahead)
        moment = dt.datetime(year, month, day, hour, minute, second, tzinfo=zone)
        return (moment - _EPOCH) // dt.timedelta(milliseconds=1) + milliseconds
    except (ValueError, OverflowError):
        return None


class Entry(_ParamType):
    """One entry of metadata, `NAME=VALUE`; the value may hold further `=`."""

    name = "entry"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{shown(value)} must be NAME=VALUE", param, ctx)
        return name, text


class PositiveNumber(_ParamType):
    """A number above 0 (or from 0 on), at most some limit; it may have decimals."""

    name = "number"

    def __init__(self, most: float, *, or_zero: bool = False) -> None:
        self._most = most
        self._or_zero = or_zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (0 < number <= self._most or (self._or_zero and number == 0)):
            least = "from 0 to" if self._or_zero else "above 0, at most"
            self.fail(f"{shown(value)} must be a number {least} {self._most:g}", param, ctx)
        return number


class Host(_ParamType):
    """A name or an address that can be found."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is."""
        try:
            socket.getaddrinfo(value, None)
        except (OSError, UnicodeError):  # the latter for what no name can be
            self.fail(f"{shown(value)} is no address of a host", param, ctx)
        return str(value)


class JsonObject(_ParamType):
    """An object, as JSON."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Return the members."""
        if isinstance(value, dict):
            return value
        try:
            members = json.loads(value)
        except (ValueError, RecursionError):
            members = None
        if not isinstance(members, dict):
            self.fail(f"{shown(value)} must be a JSON object", param, ctx)
        return members
