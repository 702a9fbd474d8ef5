"""Where settings come from: arguments, the environment, a settings file."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from meter_lib.errors import InvalidSetting
from meter_lib.setting_values import absolute, file_path, small_file, token
from meter_lib.usage import shown

if TYPE_CHECKING:
    from meter_lib.settings import Setting

__all__ = [
    "CONFIG_VARIABLE",
    "Given",
    "from_arguments",
    "from_environment",
    "from_file",
    "nearest",
    "token_in_file",
]

logger = logging.getLogger("meter_lib")

CONFIG_VARIABLE = "METER_CONFIG"
DEFAULT_CONFIG = "/etc/meter-lib/meter-lib.env"


class Given(NamedTuple):
    """A value that somebody gave, and where."""

    value: object
    origin: str
    place: str  # for messages


def from_arguments(fields: dict[str, object]) -> dict[str, Given]:
    """What a caller says; None says nothing."""
    return {
        field: Given(value, "argument", "") for field, value in fields.items() if value is not None
    }


def from_environment(
    environ: Mapping[str, str], fields: Mapping[str, str], strays: list[str]
) -> dict[str, Given]:
    """What the environment says; `fields` maps variables to fields.

    Names of ours that are no setting are warned about, and what is said is added to `strays`.
    """
    known: dict[str, Given] = {}
    unknown: list[str] = []
    for name, value in environ.items():
        field = fields.get(name)
        if field and value:
            known[field] = Given(value, "environment", " in the environment")
        elif not field and name.upper().startswith("METER_") and name != CONFIG_VARIABLE:
            unknown.append(name)
    strays += _warned_of(unknown, "the environment", fields)
    return known


def from_file(
    named: str | None, environ: Mapping[str, str], fields: Mapping[str, str], strays: list[str]
) -> dict[str, Given]:
    """The settings of the named file, or of the default one if there is one.

    For `strays` see `from_environment`.
    """
    try:
        path = absolute(file_path(named or DEFAULT_CONFIG), environ)
        lines = small_file(path).decode("utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        if not named:
            return {}
        reason = "it does not exist"
    except OSError as error:
        # The default file too: it may well name another outbox, so nothing is guessed.
        reason = f"it cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except ValueError as error:
        reason = f"it must be {error}"
    else:
        return _from_lines(lines, path, fields, strays)
    raise InvalidSetting(
        f"{CONFIG_VARIABLE} (config) is {shown(named or DEFAULT_CONFIG, most=300)}: {reason}"
    )


def _from_lines(
    lines: list[str], path: str, fields: Mapping[str, str], strays: list[str]
) -> dict[str, Given]:
    known: dict[str, Given] = {}
    unknown: list[str] = []
    for number, line in enumerate(lines, start=1):
        place = f"line {number} of {shown(path, most=300)}"
        name, value = _assignment(line.strip(), place)
        field = fields.get(name)
        if field:
            known.pop(field, None)  # the last line wins, as in a shell
            if value:
                known[field] = Given(value, path, f" in {place}")
        elif name.upper().startswith("METER_"):
            unknown.append(name)
    strays += _warned_of(unknown, shown(path, most=300), fields)
    return known


def _assignment(line: str, place: str) -> tuple[str, str]:
    """Name and value of a line; two empty texts where it says nothing."""
    if not line or line.startswith("#"):
        return "", ""
    match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", line, re.DOTALL)
    # The line itself is not repeated: it may hold a secret.
    if not match:
        raise InvalidSetting(f"{place} cannot be understood: it must be NAME=value or # comment")
    name, value = match.groups()
    if value[:1] in {'"', "'"}:
        if len(value) < 2 or value[-1] != value[0]:
            raise InvalidSetting(f"{place} ({name}) cannot be understood: its quotes do not match")
        value = value[1:-1]
    return name, value


def _warned_of(names: Iterable[str], place: str, fields: Iterable[str]) -> list[str]:
    sentences: list[str] = []
    for name in names:
        hint = (
            ": only the environment can name the settings file"
            if name == CONFIG_VARIABLE
            else nearest(name.upper(), [*fields, CONFIG_VARIABLE])
        )
        sentences.append(f"{shown(name)[1:-1]} in {place} is not a setting and has no effect{hint}")
        logger.warning(
            "%s",
            sentences[-1],
            extra={"event": "setting_unknown", "variable": name, "place": place},
        )
    return sentences


def token_in_file(file: "Setting[str | None]", path: str) -> str:
    """The secret in a file that a setting names, less the line break that editors put last."""
    try:
        text = small_file(path).decode("ascii", "replace")
    except OSError as error:
        reason = f"it cannot be read: {error.strerror}"
    except ValueError as error:
        reason = f"it must be {error}"
    else:
        text = text.removesuffix("\n").removesuffix("\r")
        try:
            return token(text)
        except ValueError as error:
            reason = f"its content must be {error}"
    raise InvalidSetting(f"{file.variable} ({file.field}) is {shown(path, most=300)}: {reason}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that may have been meant."""
    from difflib import get_close_matches  # noqa: PLC0415 - needed after a slip only

    matches = get_close_matches(name, list(known), n=1)
    return f": did you mean {matches[0]}?" if matches else ""
