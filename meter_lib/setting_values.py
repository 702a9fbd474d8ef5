"""What each kind of setting may be, and the words for what it may not.

A parser takes the text of a variable or the value of an argument, and raises ValueError with the
words that end the sentence "it must be ...".
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "MOST_WAIT_SECONDS",
    "absolute",
    "file_path",
    "flag",
    "is_server_url",
    "log_level",
    "memory",
    "number",
    "one_of",
    "outbox_path",
    "sink",
    "size",
    "small_file",
    "token",
    "topic",
    "url",
    "wait",
    "whole",
    "without_password",
]

# Whoever names /dev/zero or a database gets an answer all the same.
MOST_FILE_BYTES = 64 * 1024

MOST_SINK_TOPIC = 249 - len("-positions")

KIB, MIB, GIB = 2**10, 2**20, 2**30

# What is waited for: a socket takes a time-out of at most 2^31 ms, so 11 days are safe.
MOST_WAIT_SECONDS = 1_000_000
MOST_MEMORY_SECONDS = 1_000_000_000  # what is remembered only: some 30 years


def whole(least: int, most: int) -> Callable[[object], int]:
    """A whole number within these bounds."""

    def parse(value: object) -> int:
        # At most 15 digits: int() itself refuses numbers of some thousand digits, in its own words.
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 15:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(value)

    return parse


def size(least: int) -> Callable[[object], int]:
    """A number of bytes, at least so many."""
    most = 2**48  # larger than any file that SQLite makes

    def parse(value: object) -> int:
        match = isinstance(value, str) and re.fullmatch(r"([0-9]{1,15}) ?(KiB|MiB|GiB)?", value)
        if match:
            value = int(match[1]) * {None: 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[match[2]]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(
                f"a number of bytes from {least} to {most}; KiB, MiB or GiB may follow it"
            )
        return int(value)

    return parse


def number(unit: str, most: int, *, least: float | None = None) -> Callable[[object], float]:
    """A number of such units: above 0, or at least `least`."""
    bound = "above 0, at most" if least is None else f"from {least:g} to"

    def parse(value: object) -> float:
        try:
            number = float(value) if isinstance(value, (str, int, float)) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool):
            number = math.nan
        if not (number > 0 if least is None else number >= least) or number > most:
            raise ValueError(f"a number of {unit} {bound} {most}; it may have decimals")
        return number

    return parse


wait = number("seconds", MOST_WAIT_SECONDS)
memory = number("seconds", MOST_MEMORY_SECONDS)


def one_of(*words: str) -> Callable[[object], str]:
    """One of these words."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(" or ".join([", ".join(words[:-1]), words[-1]]))
        return words[words.index(value)]

    return parse


def flag(value: object) -> bool:
    """Yes or no."""
    return value if isinstance(value, bool) else one_of("false", "true")(value) == "true"


def log_level(value: object) -> str:
    """The name of a log level, in whatever case."""
    names = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    return one_of(*names)(value.upper() if isinstance(value, str) else value)


def topic(value: object) -> str:
    """The name of a topic, by Kafka's rule."""
    if (
        not isinstance(value, str)
        or not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", value)
        or value in (".", "..")
    ):
        raise ValueError("a topic of Kafka: 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    return value


def url(value: object) -> str:
    """A base URL, without user, password, query and fragment; trailing slashes are dropped."""
    if not isinstance(value, str) or not value.lower().startswith(("http://", "https://")):
        raise ValueError("a URL that begins with http:// or https://")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("a URL of ASCII characters without blanks; percent-encode others")
    for character, part in (("?", "a query"), ("#", "a fragment")):
        if character in value:
            raise ValueError(f"a base URL without {part} ({character})")
    scheme, _, rest = value.partition("://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise ValueError(
            "a URL without user and password; METER_STREAM_TOKEN and METER_API_KEY exist"
        )
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|\w[\w.-]*)(?::([0-9]{1,5}))?", authority)
    if not match or "\\" in path or not 1 <= int(match[1] or 1) <= 65_535:
        raise ValueError("like https://host, with a port from 1 to 65535 and a path at will")
    return f"{scheme.lower()}://{authority}{slash}{path}".rstrip("/")


def token(value: object) -> str:
    """A bearer token."""
    # It becomes part of a header, where a line break would begin another one.
    if not isinstance(value, str):
        raise ValueError("text")  # noqa: TRY004 - all parsers answer alike
    if not value:
        raise ValueError("a token, and there is none")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError("of printable ASCII characters without blanks")
    return value


def file_path(value: object) -> str:
    """The path of a file, as given."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or _has_control_characters(path):
        raise ValueError("the path of a file, in UTF-8 and without control characters")
    if path.endswith("/"):
        raise ValueError("the path of a file, not of a folder")
    return str.__str__(path)


def outbox_path(value: object) -> str:
    """The path of an outbox file, or the URL of a PostgreSQL database, as given."""
    if isinstance(value, str):
        if is_server_url(value):
            if _has_control_characters(value) or " " in value:
                raise ValueError("a URL without blanks and control characters")
            return str.__str__(value)
        if "://" in value or value.startswith((":memory:", "file:", "postgres:", "postgresql:")):
            raise ValueError("the path of a file, or a URL that begins with postgresql://")
    path = file_path(value)
    if os.path.isdir(path):
        raise ValueError("the path of a file, not of a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("the path of a file, not of a device, a pipe or a socket")
    return path


def is_server_url(value: str) -> bool:
    """Whether it names a database on a PostgreSQL server, as libpq understands it."""
    return value.startswith(("postgresql://", "postgres://"))


def sink(value: object) -> str:
    """What the events are delivered to."""
    if value == "rest":
        return "rest"
    brokers, _, name = value[8:].rpartition("/") if isinstance(value, str) else ("", "", "")
    if not isinstance(value, str) or not value.startswith("kafka://") or not brokers:
        raise ValueError("rest, or kafka://host:port[,host:port]/topic")
    if "@" in brokers:
        raise ValueError("without user and password: METER_KAFKA_CONFIG names the file for those")
    for broker in brokers.split(","):
        match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|\w[\w.-]*):([0-9]{1,5})", broker, re.ASCII)
        if not match or not 1 <= int(match[1]) <= 65_535:
            raise ValueError("kafka://host:port[,host:port]/topic, each port from 1 to 65535")
    # Beside it there is a topic with a longer name.
    if len(topic(name)) > MOST_SINK_TOPIC:
        raise ValueError(f"kafka:// with a topic of at most {MOST_SINK_TOPIC} characters")
    return value


def _has_control_characters(text: str) -> bool:
    # To compile the pattern takes half a millisecond: not for what is fine.
    return (
        not text.isprintable() and re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text) is not None
    )


def absolute(path: str, environ: Mapping[str, str]) -> str:
    """The same file, whatever the working directory will be; a URL is the same anyway."""
    if is_server_url(path):
        return path
    if path == "~" or path.startswith("~/"):
        path = _home(environ) + path[1:]
    elif path.startswith("~"):
        path = os.path.expanduser(path)
        if path.startswith("~"):
            raise ValueError("a path whose ~user exists")
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise ValueError("absolute: the working directory is gone") from None


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd  # noqa: PLC0415 - services without HOME need it, nobody else

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise ValueError("a path without ~: this user has no home folder") from None


def small_file(path: str) -> bytes:
    """The content of a file that has no reason to be large. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"no larger than {MOST_FILE_BYTES // KIB} KiB")
    return content


def without_password(url: str) -> str:
    """The URL, or what should have been one, less all that may be a password."""
    url = re.sub(r"^([a-z][a-z0-9+.-]*:/*)?.*@", r"\1***@", url, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"\?.*", "?***", url, flags=re.DOTALL)
