"""The settings: one table, read from arguments, environment and a settings file.

The only module that looks at the environment. A value that cannot be meant is refused by name
before anything is started, and no secret is ever part of a message.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from meter_lib.certificates import refused_certificate
from meter_lib.errors import InvalidSetting
from meter_lib.setting_sources import (
    CONFIG_VARIABLE,
    Given,
    from_arguments,
    from_environment,
    from_file,
    nearest,
    token_in_file,
)
from meter_lib.setting_values import (
    GIB,
    KIB,
    MIB,
    MOST_WAIT_SECONDS,
    absolute,
    file_path,
    flag,
    log_level,
    memory,
    number,
    one_of,
    outbox_path,
    sink,
    size,
    token,
    topic,
    url,
    wait,
    whole,
    without_password,
)
from meter_lib.usage import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SETTINGS", "Setting", "Settings", "default_outboxes", "outbox_in_environment"]

T = TypeVar("T")

SYSTEM_FOLDER = "/var/lib/meter-lib"  # of the outbox that applications and a service share


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
            value = without_password(value)
        return InvalidSetting(f"{name} is {shown(value)}: it must be {remedy}")


class Settings:
    """All settings, checked: `Settings(batch_size=100)` takes the defaults for the others.

    `Settings.load()` asks the environment and the settings file too. Nothing can be changed
    afterwards. `origins` says of each field where its value is from: "default", "environment",
    "argument", or the path of a file. `strays` tells of names that look like settings and are none.
    """

    outbox = Setting(
        outbox_path, "", "file of the outbox, or URL of a PostgreSQL database", is_file=True
    )
    stream_url = Setting(url, "https://stream.app.litewave.ai", "base URL of the events API")
    topic = Setting(topic, "usage-events", "topic of the events")
    accounts_url = Setting(
        url,
        "http://metering.metering.svc.cluster.local:8000",
        "base URL of the customer accounts API",
    )
    portal_url = Setting(
        url, None, "base URL of the portal, which is asked for accounts instead, with the API key"
    )
    api_key = Setting(token, None, "bearer token for the portal", secret=True)
    api_key_file = Setting(file_path, None, "file that holds the API key", is_file=True)
    stream_token = Setting(token, None, "bearer token for the events API", secret=True)
    stream_token_file = Setting(file_path, None, "file that holds the stream token", is_file=True)
    ca_bundle = Setting(
        file_path,
        None,
        "certificates of the authorities to trust instead of the usual",
        is_file=True,
    )
    client_cert = Setting(file_path, None, "certificate to show to the backend", is_file=True)
    client_key = Setting(file_path, None, "its private key, if in another file", is_file=True)
    dialect = Setting(
        one_of("auto", "confluent", "karapace", "strimzi", "redpanda"),
        "auto",
        "whose answers to expect from the events API",
    )
    batch_size = Setting(whole(1, 10_000), 500, "most records in one request")
    max_in_flight = Setting(whole(1, 64), 4, "most requests under way at once")
    batch_bytes = Setting(size(KIB), 1_000_000, "most bytes in one request, before compression")
    connect_timeout = Setting(wait, 10.0, "seconds to wait for a connection")
    read_timeout = Setting(wait, 130.0, "seconds to wait for a whole answer")
    compression = Setting(one_of("none", "gzip"), "none", "how request bodies are compressed")
    backoff_base = Setting(wait, 1.0, "seconds of the first wait during an outage")
    # No wait is longer than an hour: a hold that ends later was set by a clock that has jumped.
    backoff_max = Setting(
        number("seconds", 3600), 300.0, "seconds of the longest wait during an outage"
    )
    max_attempts = Setting(
        whole(1, 1_000_000), 10, "retriable verdicts on one event that make it a dead letter"
    )
    account_ttl = Setting(memory, 3600.0, "seconds a customer id is kept")
    max_bytes = Setting(size(4 * MIB), GIB, "limit of the outbox on disk")
    log_level = Setting(log_level, "INFO", "least severity that the worker logs")
    log_format = Setting(one_of("plain", "json"), "plain", "format of the worker's log")
    when_full = Setting(
        one_of("refuse", "drop-oldest"), "refuse", "what a full outbox does with a new event"
    )
    durability = Setting(
        one_of("full", "normal"),
        "full",
        "whether an event survives power loss from its receipt on",
    )
    allow_network_fs = Setting(
        flag,
        False,
        "whether the outbox may be on a network file system, where nothing is promised",
    )
    poll_interval = Setting(
        number("seconds", MOST_WAIT_SECONDS, least=0.01), 0.2, "seconds between looks while idle"
    )
    reconnect_spread = Setting(
        number("seconds", MOST_WAIT_SECONDS, least=0),
        30.0,
        "most seconds that devices spread their first attempts over after an outage",
    )
    rate = Setting(number("events a second", 10**9), None, "most events a second")
    dedupe_window = Setting(
        memory,
        None,
        "seconds the backend remembers idempotency keys, if it does",
    )
    sink = Setting(
        sink, "rest", "what the events are delivered to, or `kafka://host:port[,host:port]/topic`"
    )
    kafka_config = Setting(
        file_path, None, "file of librdkafka's properties for TLS and SASL", is_file=True
    )

    origins: dict[str, str]
    strays: tuple[str, ...] = ()

    def __init__(self, **fields: object) -> None:
        given = _merged(from_arguments(fields))
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
        strays: list[str] = []
        given = _merged(
            from_file(config or environ.get(CONFIG_VARIABLE), environ, _FIELDS, strays),
            from_environment(environ, _FIELDS, strays),
            from_arguments(overrides),
        )
        settings = cls.__new__(cls)
        settings.__dict__.update(_values(given, environ, delivers=delivers), strays=(*strays,))
        return settings

    def with_outbox(self, outbox: str | os.PathLike[str] | None) -> Settings:
        """These settings with another outbox, or the same ones if it is None."""
        if outbox is None:
            return self
        path = _parsed(Settings.outbox, Given(outbox, "argument", ""), os.environ)
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
        return without_password(text) if text.startswith("postgres") else text

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
_FIELDS = {setting.variable: setting.field for setting in SETTINGS}
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


def default_outboxes(environ: Mapping[str, str] | None = None) -> list[str]:
    """Every place where a program of this machine and this user may have an outbox by default."""
    environ = os.environ if environ is None else environ
    folders = [SYSTEM_FOLDER, "~/.local/state/meter-lib"]
    state = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        folders.append(f"{state}/meter-lib")
    places: list[str] = []
    for folder in folders:
        with contextlib.suppress(ValueError):
            places.append(absolute(f"{folder}/outbox.db", environ))
    return places


def _merged(*sources: dict[str, Given]) -> dict[str, Given]:
    """What the sources say together; a later one has the last word."""
    given: dict[str, Given] = {}
    for source in sources:
        for secret, file in _SECRETS:
            # Two ways to say one thing: in one source they contradict each other.
            said = {secret.field, file.field} & source.keys()
            if len(said) == 2:
                raise InvalidSetting(
                    f"{secret.variable} ({secret.field}) and {file.variable} ({file.field})"
                    " are both given: one of them must go"
                )
            if said:
                given.pop(secret.field, None)
                given.pop(file.field, None)
        given.update(source)
    return given


def _values(
    given: dict[str, Given], environ: Mapping[str, str], *, delivers: bool
) -> dict[str, Any]:  # Any: each value is of its own setting's type
    """The attributes of the settings, every one checked, alone and together."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field in given:
        if field not in _BY_FIELD:
            raise InvalidSetting(f"there is no setting {shown(field)}{nearest(field, _BY_FIELD)}")
    for setting in SETTINGS:
        said = given.get(setting.field)
        values[setting.field] = _parsed(setting, said, environ) if said else setting.default
        origins[setting.field] = said.origin if said else "default"
    if not values["outbox"]:
        values["outbox"] = _default_outbox(environ)
    _check_together(values)
    if delivers:
        for secret, file in _SECRETS:
            if values[file.field] is not None:
                values[secret.field] = token_in_file(file, values[file.field])
                origins[secret.field] = values[file.field]
        _check_files_of_tls(values)
    return {**values, "origins": origins}


def _parsed(setting: Setting[Any], given: Given, environ: Mapping[str, str]) -> object:
    # A subclass of str may have methods of its own.
    value = str.__str__(given.value) if isinstance(given.value, str) else given.value
    try:
        parsed = setting.parse(value)
        return absolute(parsed, environ) if setting.is_file else parsed
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


def _check_files_of_tls(values: dict[str, Any]) -> None:  # Any: as in _values
    for field in ("ca_bundle", "client_cert", "client_key", "kafka_config"):
        if values[field] is not None and not os.access(values[field], os.R_OK):
            raise _BY_FIELD[field].refusal(values[field], "a file that can be read")
    # librdkafka may be told the password of a key.
    own = ("client_cert", "client_key") if values["sink"] == "rest" else ()
    refused = refused_certificate(values["ca_bundle"], *(values[field] for field in own))
    if refused is not None:
        field, remedy = refused
        raise _BY_FIELD[field].refusal(values[field], remedy)


def _default_outbox(environ: Mapping[str, str]) -> str:
    if os.path.isdir(SYSTEM_FOLDER) and os.access(SYSTEM_FOLDER, os.W_OK | os.X_OK):
        return os.path.join(SYSTEM_FOLDER, "outbox.db")
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # by the rules of XDG, the same as none
        state = "~/.local/state"
    try:
        return absolute(file_path(f"{state}/meter-lib/outbox.db"), environ)
    except ValueError as error:
        reason = str(error)
    raise InvalidSetting(
        f"{Settings.outbox.variable} (outbox) has no default here, which would have to be {reason}:"
        " it must be given"
    )
