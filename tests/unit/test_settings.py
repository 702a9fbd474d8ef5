from __future__ import annotations

import copy
import logging
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import setting_sources
from meter_lib import settings as module
from meter_lib.errors import InvalidSetting
from meter_lib.settings import SETTINGS, Setting, Settings, outbox_in_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOME = "/home/somebody"

DEFAULTS = {
    "outbox": "/home/somebody/.local/state/meter-lib/outbox.db",
    "stream_url": "https://stream.app.litewave.ai",
    "topic": "usage-events",
    "accounts_url": "http://metering.metering.svc.cluster.local:8000",
    "portal_url": None,
    "api_key": None,
    "api_key_file": None,
    "stream_token": None,
    "stream_token_file": None,
    "ca_bundle": None,
    "client_cert": None,
    "client_key": None,
    "dialect": "auto",
    "batch_size": 500,
    "max_in_flight": 4,
    "batch_bytes": 1_000_000,
    "connect_timeout": 10.0,
    "read_timeout": 130.0,
    "compression": "none",
    "backoff_base": 1.0,
    "backoff_max": 300.0,
    "max_attempts": 10,
    "account_ttl": 3600.0,
    "max_bytes": 1024**3,
    "log_level": "INFO",
    "log_format": "plain",
    "when_full": "refuse",
    "durability": "full",
    "allow_network_fs": False,
    "poll_interval": 0.2,
    "reconnect_spread": 30.0,
    "rate": None,
    "dedupe_window": None,
    "sink": "rest",
    "kafka_config": None,
}


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setting_sources, "DEFAULT_CONFIG", str(tmp_path / "etc" / "meter-lib.env"))
    monkeypatch.setattr(module, "SYSTEM_FOLDER", str(tmp_path / "no-such-folder"))
    monkeypatch.setattr(os, "environ", {"HOME": HOME})


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Writes a file and gives its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "written"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def values(settings: Settings) -> dict[str, Any]:
    """All values by field."""
    return {setting.field: getattr(settings, setting.field) for setting in SETTINGS}


def refused(what: Callable[[], object]) -> str:
    """The message of the refusal, of which no part may take effect on a terminal."""
    with pytest.raises(InvalidSetting) as caught:
        what()
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert caught.value.__context__ is None
    return message


# ---- the table


def test_the_defaults_are_those_of_the_documentation() -> None:
    """Without arguments, environment and file, each setting has its documented default."""
    for settings in (Settings(), Settings.load({"HOME": HOME})):
        assert values(settings) == DEFAULTS
        assert settings.origins == dict.fromkeys(DEFAULTS, "default")


def test_each_setting_is_a_row_of_the_table() -> None:
    """A row says under which names a setting goes, what it means, and whether it is a secret."""
    assert [setting.field for setting in SETTINGS] == list(DEFAULTS)
    for setting in SETTINGS:
        assert setting.variable == "METER_" + setting.field.upper()
        assert setting.meaning
        assert getattr(Settings, setting.field) is setting
    assert [setting.field for setting in SETTINGS if setting.secret] == ["api_key", "stream_token"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_each_default_is_a_value_one_may_give(setting: Setting[Any]) -> None:
    """Giving a setting its default, as a value or as text, is the same as not giving it."""
    default = DEFAULTS[setting.field]
    if default is None:
        assert getattr(Settings(**{setting.field: None}), setting.field) is None
    else:
        assert getattr(Settings(**{setting.field: default}), setting.field) == default
        said = str(default).lower() if isinstance(default, bool) else str(default)
        text = {setting.variable: said, "HOME": HOME}
        assert getattr(Settings.load(text), setting.field) == default


def test_settings_do_not_change() -> None:
    """Settings can be neither set nor deleted nor added once they are made."""
    settings = Settings(batch_size=7)
    with pytest.raises(AttributeError, match="settings do not change: batch_size cannot be set"):
        settings.batch_size = 8
    with pytest.raises(AttributeError, match="settings do not change: other cannot be set"):
        settings.other = 8
    with pytest.raises(AttributeError, match="settings do not change: topic cannot be deleted"):
        del settings.topic
    assert settings.batch_size == 7


def test_settings_can_be_copied() -> None:
    """A copy has the same values from the same origins."""
    settings = Settings(batch_size=7)
    assert vars(copy.deepcopy(settings)) == vars(settings)


def test_another_outbox_is_the_only_difference() -> None:
    """with_outbox changes the outbox and nothing else; None changes nothing."""
    settings = Settings(batch_size=7)
    assert settings.with_outbox(None) is settings
    other = settings.with_outbox("/somewhere/else.db")
    assert values(other) == {**values(settings), "outbox": "/somewhere/else.db"}
    assert other.origins == {**settings.origins, "outbox": "argument"}
    assert values(settings)["outbox"] == DEFAULTS["outbox"]


# ---- single values

GOOD = [
    ("outbox", "/a/b.db", "/a/b.db"),
    ("outbox", "~/b.db", "/home/somebody/b.db"),
    ("outbox", "/a//c/../b@home?.db", "/a/b@home?.db"),
    ("stream_url", "http://h", "http://h"),
    ("stream_url", "HTTPS://Proxy.Example:443/a/b//", "https://Proxy.Example:443/a/b"),
    ("stream_url", "https://[::1]:65535/", "https://[::1]:65535"),
    ("stream_url", "http://127.0.0.1:1/~x/%C3%A9/@", "http://127.0.0.1:1/~x/%C3%A9/@"),
    ("accounts_url", "http://rest_proxy:8082", "http://rest_proxy:8082"),
    ("portal_url", "https://portal.example.", "https://portal.example."),
    ("topic", "a", "a"),
    ("topic", "A.b_c-9" + "x" * 242, "A.b_c-9" + "x" * 242),
    ("topic", "...", "..."),
    ("api_key", "sk-lw-!~", "sk-lw-!~"),
    ("dialect", "redpanda", "redpanda"),
    ("batch_size", "1", 1),
    ("batch_size", "10000", 10_000),
    ("batch_size", 10_000, 10_000),
    ("max_in_flight", "64", 64),
    ("batch_bytes", "1024", 1024),
    ("batch_bytes", "1KiB", 1024),
    ("max_bytes", "4194304", 4 * 1024**2),
    ("max_bytes", 4 * 1024**2, 4 * 1024**2),
    ("max_bytes", "4MiB", 4 * 1024**2),
    ("max_bytes", "4096 KiB", 4 * 1024**2),
    ("max_bytes", "20GiB", 20 * 1024**3),
    ("connect_timeout", "0.001", 0.001),
    ("connect_timeout", 3, 3.0),
    ("read_timeout", "1000000", 1_000_000.0),
    ("account_ttl", "1000000000", 1e9),
    ("compression", "gzip", "gzip"),
    ("backoff_base", "300", 300.0),
    ("backoff_max", "1", 1.0),
    ("max_attempts", "1", 1),
    ("log_level", "warning", "WARNING"),
    ("log_level", "Debug", "DEBUG"),
    ("log_format", "json", "json"),
    ("when_full", "drop-oldest", "drop-oldest"),
    ("durability", "normal", "normal"),
    ("allow_network_fs", "true", True),
    ("allow_network_fs", "false", False),
    ("poll_interval", "0.01", 0.01),
    ("reconnect_spread", "0", 0.0),
    ("rate", "0.5", 0.5),
    ("rate", 100, 100.0),
    ("dedupe_window", "604800", 604_800.0),
    ("sink", "rest", "rest"),
    ("sink", "kafka://h:9092/t", "kafka://h:9092/t"),
    (
        "sink",
        "kafka://a.b-c:1,[::1]:65535,10.0.0.1:9092/" + "t" * 239,
        "kafka://a.b-c:1,[::1]:65535,10.0.0.1:9092/" + "t" * 239,
    ),
    ("kafka_config", "/dev/null", "/dev/null"),
]


@pytest.mark.parametrize(("field", "given", "value"), GOOD)
def test_a_good_value_is_taken(field: str, given: object, value: object) -> None:
    """Limits are inclusive; text and values are both taken, and the value is of the right type."""
    settings = Settings(**{field: given})
    assert getattr(settings, field) == value
    assert type(getattr(settings, field)) is type(value)
    if isinstance(given, str):
        settings = Settings.load({f"METER_{field.upper()}": given, "HOME": HOME})
        assert getattr(settings, field) == value


PATH = "the path of a file"
URL = "a URL that begins with http:// or https://"
BATCH_SIZE = "a whole number from 1 to 10000"
WAIT = "a number of seconds above 0, at most 1000000; it may have decimals"
MAX_BYTES = "a number of bytes from 4194304 to 281474976710656; KiB, MiB or GiB may follow it"
TOPIC = "a topic of Kafka: 1 to 249 of the characters a-z A-Z 0-9 . _ -"

BAD: list[tuple[str, object, str, str]] = [
    ("outbox", "/a/", "'/a/'", PATH + ", not of a folder"),
    ("outbox", "/", "'/'", PATH + ", not of a folder"),
    ("outbox", "/dev", "'/dev'", PATH + ", not of a folder"),
    ("outbox", "/dev/null", "'/dev/null'", PATH + ", not of a device, a pipe or a socket"),
    ("outbox", "/a\x00\x1b\n\u202e", r"'/a\x00\x1b\n\u202e'", PATH + ", in UTF-8 and without"),
    ("outbox", "/a\udcff", r"'/a\udcff'", PATH + ", in UTF-8 and without control characters"),
    ("outbox", ":memory:", "':memory:'", PATH),
    ("outbox", "file:x?mode=ro", "'file:x?***'", PATH),
    ("outbox", "sqlite:///x", "'sqlite:///x'", PATH),
    ("outbox", "~nobody-of-that-name/x", "'~nobody-of-that-name/x'", "a path whose ~user exists"),
    ("outbox", b"/a", "b'/a'", PATH),
    (
        "outbox",
        "postgresql://user:pass word@host/db?password=word",
        "'postgresql://***@host/db?***'",
        "a URL without blanks and control characters",
    ),
    ("stream_url", "stream.example", "'stream.example'", URL),
    ("stream_url", "ftp://user:word@host", "'ftp://***@host'", URL),
    ("stream_url", "https:/user:word@host", "'https:/***@host'", URL),
    ("stream_url", "//user:word@host", "'***@host'", URL),
    ("stream_url", "/a", "'/a'", URL),
    (
        "stream_url",
        "http://user:word@host/",
        "'http://***@host/'",
        "a URL without user and password",
    ),
    ("stream_url", "http://user:wo/rd@host/", "'http://***@host/'", "like https://host, with"),
    ("stream_url", "https://h/?key=word", "'https://h/?***'", "a base URL without a query (?)"),
    ("stream_url", "https://h/#top", "'https://h/#top'", "a base URL without a fragment (#)"),
    ("stream_url", "https://h h", "'https://h h'", "a URL of ASCII characters without blanks"),
    ("stream_url", "https://h\n", r"'https://h\n'", "a URL of ASCII characters without blanks"),
    ("stream_url", "https://h/\x1b", r"'https://h/\x1b'", "a URL of ASCII characters without"),
    ("stream_url", "https://\u202eh", r"'https://\u202eh'", "a URL of ASCII characters without"),
    ("stream_url", "https://", "'https://'", "like https://host, with a port from 1 to 65535"),
    ("stream_url", "https:///a", "'https:///a'", "like https://host"),
    ("stream_url", "https://h:", "'https://h:'", "like https://host"),
    ("stream_url", "https://h:0", "'https://h:0'", "like https://host"),
    ("stream_url", "https://h:65536", "'https://h:65536'", "like https://host"),
    ("stream_url", "https://h:http", "'https://h:http'", "like https://host"),
    ("stream_url", "https://[::1", "'https://[::1'", "like https://host"),
    ("stream_url", r"https://h/\evil", r"'https://h/\\evil'", "like https://host"),
    ("accounts_url", "x", "'x'", URL),
    ("portal_url", 7, "7", URL),
    ("topic", "", "''", TOPIC),
    ("topic", ".", "'.'", TOPIC),
    ("topic", "..", "'..'", TOPIC),
    ("topic", "x" * 250, "'" + "x" * 56 + "...", TOPIC),
    ("topic", "a/b", "'a/b'", TOPIC),
    ("topic", "a\n", r"'a\n'", TOPIC),
    ("api_key_file", "", "''", PATH),
    ("dialect", "Karapace", "'Karapace'", "auto, confluent, karapace, strimzi or redpanda"),
    ("batch_size", "0", "'0'", BATCH_SIZE),
    ("batch_size", "10001", "'10001'", BATCH_SIZE),
    ("batch_size", "-1", "'-1'", BATCH_SIZE),
    ("batch_size", "5.0", "'5.0'", BATCH_SIZE),
    ("batch_size", "\u0665", r"'\u0665'", BATCH_SIZE),
    ("batch_size", "9" * 5000, "'" + "9" * 56 + "...", BATCH_SIZE),
    ("batch_size", 10**5000, "an integer of 16610 bits", BATCH_SIZE),
    ("batch_size", True, "True", BATCH_SIZE),
    ("batch_size", 5.0, "5.0", BATCH_SIZE),
    ("max_in_flight", "65", "'65'", "a whole number from 1 to 64"),
    ("batch_bytes", "1023", "'1023'", "a number of bytes from 1024 to 281474976710656"),
    ("max_bytes", "4194303", "'4194303'", MAX_BYTES),
    ("max_bytes", "3MiB", "'3MiB'", MAX_BYTES),
    ("max_bytes", "1GB", "'1GB'", MAX_BYTES),
    ("max_bytes", "1.5GiB", "'1.5GiB'", MAX_BYTES),
    ("max_bytes", 2**49, "562949953421312", MAX_BYTES),
    ("connect_timeout", "0", "'0'", WAIT),
    ("connect_timeout", "-1", "'-1'", WAIT),
    ("connect_timeout", "10s", "'10s'", WAIT),
    ("connect_timeout", "nan", "'nan'", WAIT),
    ("connect_timeout", "inf", "'inf'", WAIT),
    ("connect_timeout", math.nan, "nan", WAIT),
    ("connect_timeout", "1000001", "'1000001'", WAIT),
    ("connect_timeout", True, "True", WAIT),
    ("connect_timeout", 10**5000, "an integer of 16610 bits", WAIT),
    ("connect_timeout", [], "a value of type list", WAIT),
    ("read_timeout", 0, "0", WAIT),
    ("account_ttl", 0, "0", "a number of seconds above 0, at most 1000000000"),
    ("compression", "zip", "'zip'", "none or gzip"),
    ("backoff_base", 0, "0", WAIT),
    ("backoff_max", "0.5", "0.5", "at least METER_BACKOFF_BASE (backoff_base), which is 1"),
    ("max_attempts", "0", "'0'", "a whole number from 1 to 1000000"),
    ("log_level", "loud", "'loud'", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    ("log_format", "xml", "'xml'", "plain or json"),
    ("when_full", "drop", "'drop'", "refuse or drop-oldest"),
    ("durability", "none", "'none'", "full or normal"),
    ("durability", ["full"], "a value of type list", "full or normal"),
    ("allow_network_fs", "yes", "'yes'", "false or true"),
    ("poll_interval", "0.009", "'0.009'", "a number of seconds from 0.01 to 1000000"),
    ("reconnect_spread", "-1", "'-1'", "a number of seconds from 0 to 1000000"),
    ("rate", "0", "'0'", "a number of events a second above 0, at most 1000000000"),
    ("dedupe_window", "0", "'0'", "a number of seconds above 0, at most 1000000000"),
    (
        "sink",
        "kafka://u:word@h:9092/t",
        "'kafka://***@h:9092/t'",
        "without user and password: METER_KAFKA_CONFIG names the file for those",
    ),
    ("sink", "REST", "'REST'", "rest, or kafka://host:port[,host:port]/topic"),
    ("sink", 9092, "9092", "rest, or kafka://host:port[,host:port]/topic"),
    ("sink", "kafka://h:9092", "'kafka://h:9092'", "rest, or kafka://host:port"),
    ("sink", "kafka://h/t", "'kafka://h/t'", "kafka://host:port[,host:port]/topic, each port"),
    ("sink", "kafka://h:0/t", "'kafka://h:0/t'", "kafka://host:port[,host:port]/topic, each port"),
    ("sink", "kafka://h:1,/t", "'kafka://h:1,/t'", "kafka://host:port[,host:port]/topic, each"),
    ("sink", "kafka://h:1/a b", "'kafka://h:1/a b'", TOPIC),
    ("sink", "kafka://h:1/t?a=b", "'kafka://h:1/t?***'", TOPIC),
    (
        "sink",
        "kafka://h:1/" + "t" * 240,
        module.shown("kafka://h:1/" + "t" * 240),
        "kafka:// with a topic of at most 239 characters",
    ),
    ("kafka_config", "/no/such", "'/no/such'", "a file that can be read"),
    ("client_key", "/dev/null", "'/dev/null'", "given with METER_CLIENT_CERT (client_cert)"),
    ("ca_bundle", "/no/such", "'/no/such'", "a file that can be read"),
]


@pytest.mark.parametrize(("field", "given", "shown", "remedy"), BAD, ids=module.shown)
def test_a_bad_value_is_refused_by_name(field: str, given: object, shown: str, remedy: str) -> None:
    """The refusal names the setting, shows a harmless piece of the value and says what is right."""
    variable = f"METER_{field.upper()}"
    message = refused(lambda: Settings(**{field: given}))
    assert message.startswith(f"{variable} ({field}) is {shown}: it must be {remedy}")
    assert "word@" not in message
    assert "=word" not in message


@pytest.mark.parametrize(
    "given", ["secret word", "secret\n", "\x1bsecret", "sécret", "secret\udcff", b"secret", 7]
)
@pytest.mark.parametrize("field", ["api_key", "stream_token"])
def test_a_bad_token_is_refused_by_name_and_never_shown(field: str, given: object) -> None:
    """No message holds any part of a secret."""
    message = refused(lambda: Settings(**{field: given}))
    assert message.startswith(f"METER_{field.upper()} ({field}) is refused: it must be ")
    assert "cret" not in message
    assert "7" not in message


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    """A slip in an argument's name is an error, not a setting without effect."""
    assert refused(lambda: Settings(batchsize=7)) == (
        "there is no setting 'batchsize': did you mean batch_size?"
    )
    assert refused(lambda: Settings.load({}, **{"\x1b": 7})) == r"there is no setting '\x1b'"


# ---- where values come from


def test_the_order_of_precedence(file: Callable[[str], str]) -> None:
    """Arguments win over the environment, that over the file, that over the defaults."""
    path = file("METER_TOPIC=file\nMETER_DIALECT=karapace\nMETER_BATCH_SIZE=1\n")
    environ = {
        "HOME": HOME,
        "METER_CONFIG": path,
        "METER_TOPIC": "environment",
        "METER_DIALECT": "strimzi",
    }
    settings = Settings.load(environ, topic="argument", max_in_flight=None)
    assert values(settings) == {
        **DEFAULTS,
        "topic": "argument",
        "dialect": "strimzi",
        "batch_size": 1,
    }
    assert settings.origins == {
        **dict.fromkeys(DEFAULTS, "default"),
        "topic": "argument",
        "dialect": "environment",
        "batch_size": path,
    }


def test_an_empty_variable_counts_as_not_set(file: Callable[[str], str]) -> None:
    """An empty value in the environment leaves the file's, an empty one in the file the default."""
    path = file("METER_TOPIC=file\nMETER_BATCH_SIZE=\n")
    settings = Settings.load({"HOME": HOME, "METER_TOPIC": "", "METER_CONFIG": path})
    assert values(settings) == {**DEFAULTS, "topic": "file"}
    assert Settings.load({"HOME": HOME, "METER_CONFIG": ""}).topic == "usage-events"


def test_the_process_environment_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """load() without a mapping reads the environment of the process, Settings() does not."""
    monkeypatch.setitem(os.environ, "METER_TOPIC", "mine")
    assert Settings.load().topic == "mine"
    assert Settings().topic == "usage-events"


def test_the_lines_of_a_settings_file(file: Callable[[str], str]) -> None:
    """Comments, blank lines, export, quotes and blanks around names and values are understood."""
    path = file(
        "\ufeff# comment with METER_TOPIC=no\n"
        "\n"
        "   \t \n"
        "METER_TOPIC=first\r\n"
        "export METER_TOPIC = 'second'  \n"
        '  METER_API_KEY="se=cr#et"\n'
        "METER_OUTBOX=/it's/here.db\n"
        "HTTPS_PROXY=http://proxy:3128\n"
        "METER_RATE=''\n"
        "METER_BATCH_SIZE=7"
    )
    settings = Settings.load({"HOME": HOME}, config=path)
    assert values(settings) == {
        **DEFAULTS,
        "topic": "second",
        "api_key": "se=cr#et",
        "outbox": "/it's/here.db",
        "batch_size": 7,
    }


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("METER_API_KEY secret", "{} cannot be understood: it must be NAME=value or # comment"),
        ("=secret", "{} cannot be understood: it must be NAME=value or # comment"),
        ("METER-API-KEY=secret", "{} cannot be understood: it must be NAME=value or # comment"),
        ("\x1b=secret", "{} cannot be understood: it must be NAME=value or # comment"),
        (
            "METER_API_KEY='secret",
            "{} (METER_API_KEY) cannot be understood: its quotes do not match",
        ),
        ("METER_API_KEY='secret\"", "{} (METER_API_KEY) cannot be understood: its quotes do not"),
        ("METER_API_KEY='", "{} (METER_API_KEY) cannot be understood: its quotes do not match"),
        (
            "METER_API_KEY=se cret",
            "METER_API_KEY (api_key) in {} is refused: it must be of printable",
        ),
        ("METER_BATCH_SIZE=0", "METER_BATCH_SIZE (batch_size) in {} is '0': it must be a whole"),
        (
            "METER_BATCH_SIZE=7 # few",
            "METER_BATCH_SIZE (batch_size) in {} is '7 # few': it must be",
        ),
    ],
)
def test_a_bad_line_is_refused_by_its_number(
    line: str, fault: str, file: Callable[[str], str]
) -> None:
    """The refusal says which line of which file is at fault, and repeats no secret."""
    path = file(f"METER_TOPIC=t\n\n{line}\n")
    message = refused(lambda: Settings.load({"HOME": HOME}, config=path))
    assert message.startswith(fault.format(f"line 3 of '{path}'"))
    assert "cret" not in message


def test_a_bad_value_of_the_environment_says_so() -> None:
    """The refusal says that the value is the environment's."""
    message = refused(lambda: Settings.load({"METER_BATCH_SIZE": "x\x1b"}))
    assert message == (
        r"METER_BATCH_SIZE (batch_size) in the environment is 'x\x1b': it must be a whole number"
        " from 1 to 10000"
    )


def test_a_named_settings_file_must_be_readable(
    tmp_path: Path, file: Callable[[str | bytes], str]
) -> None:
    """A settings file that is named and cannot be used is an error, never skipped."""
    for named, reason in (
        (str(tmp_path / "missing"), "it does not exist"),
        (str(tmp_path), "it cannot be read: Is a directory"),
        (f"{tmp_path}/", "it must be the path of a file, not of a folder"),
        (file(b"METER_TOPIC=\xff\n"), "it is not UTF-8"),
        ("/dev/zero", "it must be no larger than 64 KiB"),
    ):
        message = f"METER_CONFIG (config) is '{named}': {reason}"
        assert refused(lambda: Settings.load({"METER_CONFIG": named})) == message  # noqa: B023
        assert refused(lambda: Settings.load({}, config=named)) == message  # noqa: B023


def test_the_default_settings_file_is_read_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without METER_CONFIG the default file counts if it is there, and must then be readable."""
    default = tmp_path / "etc" / "meter-lib.env"
    assert Settings.load({"HOME": HOME}).topic == "usage-events"
    default.parent.mkdir()
    default.write_text("METER_TOPIC=default-file\n")
    settings = Settings.load({"HOME": HOME})
    assert (settings.topic, settings.origins["topic"]) == ("default-file", str(default))
    assert Settings.load({"HOME": HOME, "METER_CONFIG": "/dev/null"}).topic == "usage-events"
    monkeypatch.setattr(setting_sources, "DEFAULT_CONFIG", str(default / "below-a-file"))
    assert Settings.load({"HOME": HOME}).topic == "usage-events"
    monkeypatch.setattr(setting_sources, "DEFAULT_CONFIG", str(tmp_path))
    assert refused(lambda: Settings.load({"HOME": HOME})) == (
        f"METER_CONFIG (config) is '{tmp_path}': it cannot be read: Is a directory"
    )


def test_unknown_names_are_warned_about(
    file: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A name of ours that is no setting has no effect, and a warning says so without its value."""
    path = file("METER_BATCHSIZE=secret\nMETER_CONFIG=/x\n")
    environ = {
        "HOME": HOME,
        "METER_CONFIG": path,
        "METER_OUTPUT_BOX\x1b": "secret",
        "METER_CONFIGS": "secret",
        "meter_topic": "secret",
        "METERING_PORT": "none of ours",
        "PATH": "/bin",
    }
    assert values(Settings.load(environ)) == DEFAULTS
    assert caplog.record_tuples == [
        ("meter_lib", logging.WARNING, f"{text} is not a setting and has no effect{hint}")
        for text, hint in (
            (f"METER_BATCHSIZE in '{path}'", ": did you mean METER_BATCH_SIZE?"),
            (f"METER_CONFIG in '{path}'", ": only the environment can name the settings file"),
            (r"METER_OUTPUT_BOX\x1b in the environment", ": did you mean METER_OUTBOX?"),
            ("METER_CONFIGS in the environment", ": did you mean METER_CONFIG?"),
            ("meter_topic in the environment", ": did you mean METER_TOPIC?"),
        )
    ]


# ---- secrets


@pytest.mark.parametrize(
    ("content", "token"),
    [(b"sk-1", "sk-1"), (b"sk-1\n", "sk-1"), (b"sk-1\r\n", "sk-1")],
)
@pytest.mark.parametrize("field", ["api_key", "stream_token"])
def test_a_secret_may_be_in_a_file(
    field: str, content: bytes, token: str, file: Callable[[bytes], str]
) -> None:
    """The token of a file is in force like any other, and its origin is that file."""
    path = file(content)
    settings = Settings.load({"HOME": HOME, f"METER_{field.upper()}_FILE": path})
    assert values(settings) == {**DEFAULTS, field: token, f"{field}_file": path}
    assert settings.origins[field] == path
    assert settings.origins[f"{field}_file"] == "environment"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "its content must be a token, and there is none"),
        (b"\n", "its content must be a token, and there is none"),
        (b"secret\n\n", "its content must be of printable ASCII characters without blanks"),
        (b" secret\n", "its content must be of printable ASCII characters without blanks"),
        (b"secret\x1b", "its content must be of printable ASCII characters without blanks"),
        (b"secret\xff", "its content must be of printable ASCII characters without blanks"),
        (b"secret" * 11_000, "it must be no larger than 64 KiB"),
    ],
)
def test_a_file_without_a_good_secret_is_refused(
    content: bytes, fault: str, file: Callable[[bytes], str]
) -> None:
    """The refusal names setting and file, and holds no part of the content."""
    path = file(content)
    message = refused(lambda: Settings(api_key_file=path))
    assert message == f"METER_API_KEY_FILE (api_key_file) is '{path}': {fault}"


def test_a_missing_secret_file_is_refused() -> None:
    """A secret that cannot be read is not a secret that is not wanted."""
    missing = "/no/such"
    assert refused(lambda: Settings(stream_token_file=missing)) == (
        "METER_STREAM_TOKEN_FILE (stream_token_file) is '/no/such': it cannot be read:"
        " No such file or directory"
    )


def test_who_records_need_not_read_the_secrets() -> None:
    """Without delivery, files that only delivery needs are neither read nor looked for."""
    settings = Settings.load(
        {"HOME": HOME}, delivers=False, api_key_file="/no/such", ca_bundle="/no/ca"
    )
    assert values(settings) == {**DEFAULTS, "api_key_file": "/no/such", "ca_bundle": "/no/ca"}


def test_a_secret_and_its_file_contradict_each_other(file: Callable[[str], str]) -> None:
    """Both ways from one source are an error; of two sources the upper one's counts."""
    both = {"HOME": HOME, "METER_API_KEY": "secret", "METER_API_KEY_FILE": "/no/such"}
    message = (
        "METER_API_KEY (api_key) and METER_API_KEY_FILE (api_key_file) are both given:"
        " one of them must go"
    )
    assert refused(lambda: Settings.load(both)) == message
    assert refused(lambda: Settings(api_key="secret", api_key_file="/no/such")) == message
    settings = Settings.load(
        {"HOME": HOME, "METER_API_KEY": "environment"},
        config=file("METER_API_KEY_FILE=/no/such\n"),
    )
    assert (settings.api_key, settings.api_key_file) == ("environment", None)


def test_nothing_shows_a_secret(file: Callable[[str], str]) -> None:
    """Neither repr() nor shown() gives a secret away."""
    path = file("sk-file")
    settings = Settings(api_key="sk-argument", stream_token_file=path, batch_size=7)
    assert repr(settings) == (
        f"Settings(api_key='***', stream_token='***', stream_token_file='{path}', batch_size='7')"
    )
    assert {field: settings.shown(field) for field in ("api_key", "portal_url", "batch_size")} == {
        "api_key": "***",
        "portal_url": "-",
        "batch_size": "7",
    }


def test_the_password_of_a_database_is_masked_where_a_setting_is_shown() -> None:
    """A PostgreSQL URL is shown without its user and password."""
    settings = Settings(outbox="postgresql://user:word@host/db?password=word")
    assert settings.outbox == "postgresql://user:word@host/db?password=word"
    assert settings.shown("outbox") == "postgresql://***@host/db?***"
    assert "word" not in repr(settings)


# ---- the outbox


def test_the_default_outbox_is_the_shared_one_where_it_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's folder is used if it exists and is writable, else the user's own."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(module, "SYSTEM_FOLDER", str(shared))
    environ = {"HOME": HOME, "XDG_STATE_HOME": "/state"}
    assert Settings.load(environ).outbox == f"{shared}/outbox.db"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert Settings.load(environ).outbox == "/state/meter-lib/outbox.db"


@pytest.mark.parametrize(
    ("environ", "outbox"),
    [
        ({"HOME": HOME, "XDG_STATE_HOME": "/state"}, "/state/meter-lib/outbox.db"),
        ({"HOME": HOME, "XDG_STATE_HOME": "state"}, DEFAULTS["outbox"]),
        ({"HOME": HOME, "XDG_STATE_HOME": ""}, DEFAULTS["outbox"]),
        ({"HOME": HOME}, DEFAULTS["outbox"]),
    ],
)
def test_the_default_outbox_of_a_user(environ: dict[str, str], outbox: str) -> None:
    """Without the shared folder the outbox is where programs of this user keep their state."""
    assert Settings.load(environ).outbox == outbox
    assert Settings.load(environ).origins["outbox"] == "default"


def test_a_user_without_home_must_name_the_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing tells the home folder, the outbox is asked for by name."""
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert refused(lambda: Settings.load({})) == (
        "METER_OUTBOX (outbox) has no default here, which would have to be a path without ~: this"
        " user has no home folder: it must be given"
    )
    assert Settings.load({"METER_OUTBOX": "/a/b.db"}).outbox == "/a/b.db"


def test_a_relative_outbox_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outbox stays the same file when the program changes its working directory."""
    monkeypatch.chdir(tmp_path)
    assert Settings(outbox="here.db").outbox == str(tmp_path / "here.db")
    assert Settings(outbox=tmp_path / "there.db").outbox == str(tmp_path / "there.db")
    assert Settings().with_outbox("here.db").outbox == str(tmp_path / "here.db")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refused(lambda: Settings(outbox="here.db")) == (
        "METER_OUTBOX (outbox) is 'here.db': it must be absolute: the working directory is gone"
    )


def test_a_changed_environment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever may lead to another outbox changes the text that stands for it."""
    seen = [outbox_in_environment()]
    for name in ("HOME", "XDG_STATE_HOME", "METER_CONFIG", "METER_OUTBOX"):
        monkeypatch.setitem(os.environ, name, f"/{name}")
        seen.append(outbox_in_environment())
    assert len(set(seen)) == 5
    assert seen[-1] == "/METER_OUTBOX"


# ---- the weight


def test_reading_settings_loads_next_to_nothing() -> None:
    """The host program pays for json, logging and re, which most have loaded already."""
    script = (
        "import json, logging, sys\n"
        "before = set(sys.modules)\n"
        "import meter_lib.settings, meter_lib.meters\n"
        "meter_lib.settings.Settings(outbox='/a')\n"
        "print(*sorted({'dataclasses', 'difflib', 'hashlib', 'inspect', 'pathlib', 'secrets',"
        " 'urllib', 'uuid'} & (set(sys.modules) - before)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"
