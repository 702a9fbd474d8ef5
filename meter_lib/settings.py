"""The settings: one table, read from arguments, environment and a settings file.

The only module that looks at the environment. A value that cannot be meant is refused by name
before anything is started, and no secret is ever part of a message.
"""

from __future__ import annotations

import logging
import math
import os
import re
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar, overload

from meter_lib.errors import InvalidSetting
from meter_lib.usage import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["SETTINGS", "Setting", "Settings", "outbox_in_environment"]

logger = logging.getLogger("meter_lib")

T = TypeVar("T")

CONFIG_VARIABLE = "METER_CONFIG"
DEFAULT_CONFIG = "/etc/meter-lib/meter-lib.env"
SYSTEM_FOLDER = "/var/lib/meter-lib"  # of the outbox that applications and a service share

# Whoever names /dev/zero or a database gets an answer all the same.
MOST_FILE_BYTES = 64 * 1024

KIB, MIB, GIB = 2**10, 2**20, 2**30

# What is waited for: a socket takes a time-out of at most 2^31 ms, so 11 days are safe.
MOST_WAIT_SECONDS = 1_000_000
MOST_MEMORY_SECONDS = 1_000_000_000  # what is remembered only: some 30 years


class Setting(Generic[T]):
    """One row of the table: as a class attribute itself, on an instance the value."""

    field: str  # as an argument and attribute
    variable: str  # in the environment and in the settings file

    def __init__(
        self,
        parse: Callable[[object], T],
        default: T,
        meaning: str,
        *,
        secret: bool = False,
        is_file: bool = False,
    ) -> None:
        self.parse = parse
        self.default = default
        self.meaning = meaning
        self.secret = secret
        self.is_file = is_file

    def __set_name__(self, owner: type, name: str) -> None:
        self.field = name
        self.variable = f"METER_{name.upper()}"

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object, owner: type) -> Setting[T] | T:
        # For the type checkers: on an instance, its own attribute is found first.
        return self

    def refusal(self, value: object, remedy: str, place: str = "") -> InvalidSetting:
        """The error that names the setting, without the value where that is a secret."""
        name = f"{self.variable} ({self.field}){place}"
        if self.secret:
            return InvalidSetting(f"{name} is refused: it must be {remedy}")
        # A path may well hold an @ or a ?, a URL none but before and after what is private.
        if isinstance(value, str) and not (self.is_file and value.startswith(("/", "~", "."))):
            value = _without_password(value)
        return InvalidSetting(f"{name} is {shown(value)}: it must be {remedy}")


class _Given(NamedTuple):
    """A value that somebody gave, and where."""

    value: object
    origin: str
    place: str  # for messages


# Parsers. Each takes the text of a variable or the value of an argument, and raises ValueError with
# the words that end the sentence "it must be ...".


def _whole(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        # At most 15 digits: int() itself refuses numbers of some thousand digits, in its own words.
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 15:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(value)

    return parse


def _size(least: int) -> Callable[[object], int]:
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


def _number(unit: str, most: int, *, least: float | None = None) -> Callable[[object], float]:
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


_wait = _number("seconds", MOST_WAIT_SECONDS)
_memory = _number("seconds", MOST_MEMORY_SECONDS)


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(" or ".join([", ".join(words[:-1]), words[-1]]))
        return words[words.index(value)]

    return parse


def _log_level(value: object) -> str:
    names = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    return _one_of(*names)(value.upper() if isinstance(value, str) else value)


def _topic(value: object) -> str:
    if (
        not isinstance(value, str)
        or not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", value)
        or value in (".", "..")
    ):
        raise ValueError("a topic of Kafka: 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    return value


def _url(value: object) -> str:
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
        raise ValueError("a URL without user:password@; METER_STREAM_TOKEN and METER_API_KEY exist")
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|\w[\w.-]*)(?::([0-9]{1,5}))?", authority)
    if not match or "\\" in path or not 1 <= int(match[1] or 1) <= 65_535:
        raise ValueError("like https://host, with a port from 1 to 65535 and a path at will")
    return f"{scheme.lower()}://{authority}{slash}{path}".rstrip("/")


def _token(value: object) -> str:
    # It becomes part of a header, where a line break would begin another one.
    if not isinstance(value, str):
        raise ValueError("text")  # noqa: TRY004 - all parsers answer alike
    if not value:
        raise ValueError("a token, and there is none")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError("of printable ASCII characters without blanks")
    return value


def _path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or _has_control_characters(path):
        raise ValueError("the path of a file, in UTF-8 and without control characters")
    if path.endswith("/"):
        raise ValueError("the path of a file, not of a folder")
    return str.__str__(path)


def _outbox(value: object) -> str:
    if isinstance(value, str):
        if value.startswith(("postgresql:", "postgres:")):
            raise ValueError("the path of a file: this version has no PostgreSQL outbox")
        if "://" in value or value.startswith((":memory:", "file:")):
            raise ValueError("the path of a file")
    path = _path(value)
    if os.path.isdir(path):
        raise ValueError("the path of a file, not of a folder")
    return path


def _sink(value: object) -> str:
    if isinstance(value, str) and value.startswith("kafka:"):
        raise ValueError("rest: this version has no Kafka sink")
    if value != "rest":
        raise ValueError("rest")
    return "rest"


def _has_control_characters(text: str) -> bool:
    return re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text) is not None


class Settings:
    """All settings, checked: `Settings(batch_size=100)` takes the defaults for the others.

    `Settings.load()` asks the environment and the settings file too. Nothing can be changed
    afterwards. `origins` says of each field where its value is from: "default", "environment",
    "argument", or the path of a file.
    """

    outbox = Setting(_outbox, "", "file of the outbox", is_file=True)
    stream_url = Setting(_url, "https://stream.app.litewave.ai", "base URL of the events API")
    topic = Setting(_topic, "usage-events", "topic of the events")
    accounts_url = Setting(
        _url,
        "http://metering.metering.svc.cluster.local:8000",
        "base URL of the customer accounts API",
    )
    portal_url = Setting(
        _url, None, "base URL of the portal, which is asked for accounts instead, with the API key"
    )
    api_key = Setting(_token, None, "bearer token for the portal", secret=True)
    api_key_file = Setting(_path, None, "file that holds the API key", is_file=True)
    stream_token = Setting(_token, None, "bearer token for the events API", secret=True)
    stream_token_file = Setting(_path, None, "file that holds the stream token", is_file=True)
    ca_bundle = Setting(
        _path, None, "certificates of the authorities to trust instead of the usual", is_file=True
    )
    client_cert = Setting(_path, None, "certificate to show to the backend", is_file=True)
    client_key = Setting(_path, None, "its private key, if in another file", is_file=True)
    dialect = Setting(
        _one_of("auto", "confluent", "karapace", "strimzi", "redpanda"),
        "auto",
        "whose answers to expect from the events API",
    )
    batch_size = Setting(_whole(1, 10_000), 500, "most records in one request")
    max_in_flight = Setting(_whole(1, 64), 4, "most requests under way at once")
    batch_bytes = Setting(_size(KIB), 1_000_000, "most bytes in one request, before compression")
    connect_timeout = Setting(_wait, 10.0, "seconds to wait for a connection")
    read_timeout = Setting(_wait, 130.0, "seconds to wait for a whole answer")
    compression = Setting(_one_of("none", "gzip"), "none", "how request bodies are compressed")
    backoff_base = Setting(_wait, 1.0, "seconds of the first wait during an outage")
    backoff_max = Setting(_wait, 300.0, "seconds of the longest wait during an outage")
    max_attempts = Setting(
        _whole(1, 1_000_000), 10, "retriable verdicts on one event that make it a dead letter"
    )
    account_ttl = Setting(_memory, 3600.0, "seconds a customer id is kept")
    max_bytes = Setting(_size(4 * MIB), GIB, "limit of the outbox on disk")
    log_level = Setting(_log_level, "INFO", "least severity that the worker logs")
    log_format = Setting(_one_of("plain", "json"), "plain", "format of the worker's log")
    when_full = Setting(
        _one_of("refuse", "drop-oldest"), "refuse", "what a full outbox does with a new event"
    )
    durability = Setting(
        _one_of("full", "normal"),
        "full",
        "whether an event survives power loss from its receipt on",
    )
    poll_interval = Setting(
        _number("seconds", MOST_WAIT_SECONDS, least=0.01), 0.2, "seconds between looks while idle"
    )
    reconnect_spread = Setting(
        _number("seconds", MOST_WAIT_SECONDS, least=0),
        30.0,
        "most seconds that devices spread their first attempts over after an outage",
    )
    rate = Setting(_number("events a second", 10**9), None, "most events a second")
    dedupe_window = Setting(
        _memory,
        None,
        "seconds the backend remembers idempotency keys, if it does",
    )
    sink = Setting(_sink, "rest", "what the events are delivered to")

    origins: dict[str, str]

    def __init__(self, **fields: object) -> None:
        given = _from_arguments(fields)
        self.__dict__.update(_values(given, os.environ, delivers=True))

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        config: str | None = None,
        delivers: bool = True,
        **overrides: object,
    ) -> Settings:
        """The settings of this process: from `overrides` (None says nothing), else from the
        environment, else from the settings file, else the defaults.

        The file is `config`, else the one that METER_CONFIG names, else the default one where there
        is one. Without `delivers`, files that only delivery needs (secrets, certificates) are not
        read: a program that records usage need not be allowed to.
        """
        if environ is None:
            environ = os.environ
        given: dict[str, _Given] = {}
        _lay_over(given, _from_file(config or environ.get(CONFIG_VARIABLE), environ))
        _lay_over(given, _from_environment(environ))
        _lay_over(given, _from_arguments(overrides))
        settings = cls.__new__(cls)
        settings.__dict__.update(_values(given, environ, delivers=delivers))
        return settings

    def with_outbox(self, outbox: str | os.PathLike[str] | None) -> Settings:
        """These settings with another outbox, or the same ones if it is None."""
        if outbox is None:
            return self
        path = _parsed(Settings.outbox, _Given(outbox, "argument", ""), os.environ)
        settings = type(self).__new__(type(self))
        settings.__dict__.update(
            self.__dict__, outbox=path, origins={**self.origins, "outbox": "argument"}
        )
        return settings

    def shown(self, field: str) -> str:
        """The value of a field for people: secrets and passwords masked."""
        value: object = getattr(self, field)
        if value is None:
            return "-"
        if _BY_FIELD[field].secret:
            return "***"
        text = str(value)
        return _without_password(text) if text.startswith("postgres") else text

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"settings do not change: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"settings do not change: {name} cannot be deleted")

    def __repr__(self) -> str:
        given = [
            f"{field}={self.shown(field)!r}"
            for field, origin in self.origins.items()
            if origin != "default"
        ]
        return f"Settings({', '.join(given)})"


SETTINGS: tuple[Setting[Any], ...] = tuple(  # Any: each has its own type
    row for row in vars(Settings).values() if isinstance(row, Setting)
)
_BY_FIELD = {setting.field: setting for setting in SETTINGS}
_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
_SECRETS = (
    (Settings.api_key, Settings.api_key_file),
    (Settings.stream_token, Settings.stream_token_file),
)


def outbox_in_environment() -> str:
    """A text that changes whenever the environment names another outbox: cheap, for every post."""
    ask = os.environ.get
    outbox = ask("METER_OUTBOX")
    if outbox:
        return outbox
    return "\0".join([ask(CONFIG_VARIABLE, ""), ask("XDG_STATE_HOME", ""), ask("HOME", "")])


def _lay_over(given: dict[str, _Given], layer: dict[str, _Given]) -> None:
    """Put what one source says over what the sources below it said."""
    for token, file in _SECRETS:
        # Two ways to say one thing: of two sources the upper one counts, in one they contradict.
        said = {token.field, file.field} & layer.keys()
        if len(said) == 2:
            raise InvalidSetting(
                f"{token.variable} ({token.field}) and {file.variable} ({file.field}) are both"
                " given: one of them must go"
            )
        if said:
            given.pop(token.field, None)
            given.pop(file.field, None)
    given.update(layer)


def _values(
    given: dict[str, _Given], environ: Mapping[str, str], *, delivers: bool
) -> dict[str, Any]:  # Any: each value is of its own setting's type
    """The attributes of the settings, every one checked, alone and together."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field in given:
        if field not in _BY_FIELD:
            raise InvalidSetting(f"there is no setting {shown(field)}{_nearest(field, _BY_FIELD)}")
    for setting in SETTINGS:
        said = given.get(setting.field)
        values[setting.field] = _parsed(setting, said, environ) if said else setting.default
        origins[setting.field] = said.origin if said else "default"
    if not values["outbox"]:
        values["outbox"] = _default_outbox(environ)
    _check_together(values)
    if delivers:
        for token, file in _SECRETS:
            if values[file.field] is not None:
                values[token.field] = _token_in(file, values[file.field])
                origins[token.field] = values[file.field]
        for setting in (Settings.ca_bundle, Settings.client_cert, Settings.client_key):
            path = values[setting.field]
            if path is not None and not os.access(path, os.R_OK):
                raise setting.refusal(path, "a file that can be read")
    return {**values, "origins": origins}


def _parsed(setting: Setting[Any], given: _Given, environ: Mapping[str, str]) -> object:
    # A subclass of str may have methods of its own.
    value = str.__str__(given.value) if isinstance(given.value, str) else given.value
    try:
        parsed = setting.parse(value)
        return _absolute(parsed, environ) if setting.is_file else parsed
    except ValueError as error:
        remedy = str(error)
    # Outside of the handler, so that no traceback leads from this error to a secret.
    raise setting.refusal(value, remedy, given.place)


def _check_together(values: dict[str, Any]) -> None:  # Any: as in _values
    base = Settings.backoff_base
    if values["backoff_max"] < values[base.field]:
        raise Settings.backoff_max.refusal(
            values["backoff_max"],
            f"at least {base.variable} ({base.field}), which is {values[base.field]:g}",
        )
    certificate = Settings.client_cert
    if values["client_key"] is not None and values[certificate.field] is None:
        raise Settings.client_key.refusal(
            values["client_key"], f"given with {certificate.variable} ({certificate.field})"
        )


def _from_arguments(fields: dict[str, object]) -> dict[str, _Given]:
    return {
        field: _Given(value, "argument", "") for field, value in fields.items() if value is not None
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    known: dict[str, _Given] = {}
    unknown: list[str] = []
    for name, value in environ.items():
        setting = _BY_VARIABLE.get(name)
        if setting and value:
            known[setting.field] = _Given(value, "environment", " in the environment")
        elif not setting and name.upper().startswith("METER_") and name != CONFIG_VARIABLE:
            unknown.append(name)
    _warn_of_unknown(unknown, "the environment")
    return known


def _from_file(named: str | None, environ: Mapping[str, str]) -> dict[str, _Given]:
    """The settings of the named file, or of the default one if there is one."""
    try:
        path = _absolute(_path(named or DEFAULT_CONFIG), environ)
        lines = _read(path).decode("utf-8-sig").split("\n")
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
        return _from_lines(lines, path)
    raise InvalidSetting(
        f"{CONFIG_VARIABLE} (config) is {shown(named or DEFAULT_CONFIG, most=300)}: {reason}"
    )


def _from_lines(lines: list[str], path: str) -> dict[str, _Given]:
    known: dict[str, _Given] = {}
    unknown: list[str] = []
    for number, line in enumerate(lines, start=1):
        place = f"line {number} of {shown(path, most=300)}"
        name, value = _assignment(line.strip(), place)
        setting = _BY_VARIABLE.get(name)
        if setting:
            known.pop(setting.field, None)  # the last line wins, as in a shell
            if value:
                known[setting.field] = _Given(value, path, f" in {place}")
        elif name.upper().startswith("METER_"):
            unknown.append(name)
    _warn_of_unknown(unknown, shown(path, most=300))
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


def _warn_of_unknown(names: Iterable[str], place: str) -> None:
    for name in names:
        logger.warning(
            "%s in %s is not a setting and has no effect%s",
            shown(name)[1:-1],
            place,
            _nearest(name.upper(), _BY_VARIABLE),
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - needed after a slip only

    matches = get_close_matches(name, list(known), n=1)
    return f": did you mean {matches[0]}?" if matches else ""


def _default_outbox(environ: Mapping[str, str]) -> str:
    if os.path.isdir(SYSTEM_FOLDER) and os.access(SYSTEM_FOLDER, os.W_OK | os.X_OK):
        return os.path.join(SYSTEM_FOLDER, "outbox.db")
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # by the rules of XDG, the same as none
        state = "~/.local/state"
    try:
        return _absolute(_path(f"{state}/meter-lib/outbox.db"), environ)
    except ValueError as error:
        reason = str(error)
    raise InvalidSetting(
        f"{Settings.outbox.variable} (outbox) has no default here, which would have to be {reason}:"
        " it must be given"
    )


def _absolute(path: str, environ: Mapping[str, str]) -> str:
    """The same file, whatever the working directory will be."""
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


def _token_in(file: Setting[str | None], path: str) -> str:
    """The secret in a file, less the line break that editors put at the end."""
    try:
        text = _read(path).decode("ascii", "replace")
    except OSError as error:
        reason = f"it cannot be read: {error.strerror}"
    except ValueError as error:
        reason = f"it must be {error}"
    else:
        text = text.removesuffix("\n").removesuffix("\r")
        try:
            return _token(text)
        except ValueError as error:
            reason = f"its content must be {error}"
    raise InvalidSetting(f"{file.variable} ({file.field}) is {shown(path, most=300)}: {reason}")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"no larger than {MOST_FILE_BYTES // KIB} KiB")
    return content


def _without_password(url: str) -> str:
    """The URL, or what should have been one, less all that may be a password."""
    url = re.sub(r"^([a-z][a-z0-9+.-]*:/*)?.*@", r"\1***@", url, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"\?.*", "?***", url, flags=re.DOTALL)
