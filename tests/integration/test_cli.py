"""The command line: its exit codes, what goes to stdout and what to stderr, and what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import click
import pytest

import meter_migrations
from meter_lib import METERS, MeterClient, OutboxUnavailable, __version__
from meter_lib._sqlite import database
from meter_lib.opening import open_outbox
from meter_lib.outbox import Account, Burial, Link, Selector, Settlement
from meter_lib.settings import SETTINGS, Settings
from meter_worker.cli import main
from meter_worker.importing import LineImport
from tests.fakes import ManualClock
from tests.integration.operating import DIED_AT, EVENT, TIME, Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from meter_lib.clock import Uptime
    from meter_lib.outbox import DeadLetter, Outbox

POST = ("post", "--tenant", "t", "--device", "d", "--meter", "page.processed.basic")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an outbox that does not exist yet, in an environment that says nothing else."""
    for name in list(os.environ):
        if name.startswith("METER_"):
            monkeypatch.delenv(name)
    outbox = tmp_path / "outbox.db"
    monkeypatch.setenv("METER_OUTBOX", str(outbox))
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    monkeypatch.chdir(tmp_path)
    return outbox


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process."""

    def run_here(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, printed.out, printed.err)

    return run_here


def run_process(*arguments: str, stdin: bytes = b"", **environment: str) -> Ended:
    """Run a command line as a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "meter_worker", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=20,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def eventually(look: Callable[[], object], *, seconds: float = 10) -> None:
    """Look until it is so; fail where it is not within the time."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    """The outbox, opened as a program does."""
    opened = open_outbox(Settings(outbox=str(path)))
    yield opened
    opened.close()


def bury(outbox: Outbox, count: int, *, detail: str = "no", **arguments: Any) -> list[str]:
    """Record events under keys k0, k1, ... and make dead letters of them."""
    keys = [f"k{number}" for number in range(count)]
    with MeterClient(outbox.location) as client:
        client.post_many(
            EVENT | {"idempotency_key": key, "timestamp": TIME + number} | arguments
            for number, key in enumerate(keys)
        )
    while due := outbox.due(now=TIME, limit=500, max_bytes=10**9):
        buried = [Burial(event, "rejected", detail) for event in due]
        outbox.settle(Settlement(buried=buried), now=DIED_AT)
    return keys


def write_lines(path: Path, lines: Sequence[object]) -> str:
    """Write what is no bytes as JSON, and return the path."""
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return str(path)


# -- what is wrong with a command line -------------------------------------------------

WRONG = [
    (("--no-such",), "--no-such"),
    (("nonsense",), "nonsense"),
    (("post", "--no-such"), "--no-such"),
    (("post", "extra"), "extra"),
    (("post", "--device", "d", "--meter", "m", "--usage", "1"), "--tenant"),
    (("post", "--tenant", "t", "--meter", "m", "--usage", "1"), "--device"),
    (("post", "--tenant", "t", "--device", "d", "--usage", "1"), "--meter"),
    (POST, "--usage"),
    ((*POST, "--usage", "1", "--tenant", ""), "--tenant"),
    ((*POST, "--usage", "1", "--tenant", "a\x1bb"), "--tenant"),
    ((*POST, "--usage", "1", "--tenant", "x" * 256), "--tenant"),
    ((*POST, "--usage", "1", "--tenant", os.fsdecode(b"\xff")), "--tenant"),
    ((*POST, "--usage", "1", "--device", " d"), "--device"),
    ((*POST, "--usage", "1", "--meter", ""), "--meter"),
    ((*POST, "--usage", "-1"), "--usage"),
    ((*POST, "--usage", "1.5"), "--usage"),
    ((*POST, "--usage", "many"), "--usage"),
    ((*POST, "--usage", "9" * 5000), "--usage"),
    ((*POST, "--usage"), "--usage"),
    ((*POST, "--start-time", "1700000000"), "--start-time"),
    ((*POST, "--start-time", "now"), "--start-time"),
    ((*POST, "--end-time", "1"), "--end-time"),
    ((*POST, "--end-time", "now"), "--end-time"),
    ((*POST, "--start-time", str(TIME), "--end-time", str(TIME - 1)), "--end-time"),
    ((*POST, "--usage", "1", "--timestamp", "1"), "--timestamp"),
    ((*POST, "--usage", "1", "--timestamp", "now"), "--timestamp"),
    ((*POST, "--usage", "1", "--metadata", "novalue"), "--metadata"),
    ((*POST, "--usage", "1", "--metadata", "=v"), "--metadata"),
    ((*POST, "--usage", "1", "--metadata", "k=1", "--metadata", "k=2"), "--metadata"),
    ((*POST, "--usage", "1", "--metadata", "k=" + "v" * 8193), "--metadata"),
    ((*POST, "--usage", "1", "--idempotency-key", ""), "--idempotency-key"),
    ((*POST, "--usage", "1", "--idempotency-key", "a b"), "--idempotency-key"),
    (("post", "--from-file", "missing.jsonl"), "--from-file"),
    (("post", "--from-file", "."), "--from-file"),
    (("post", "--from-file", "-", "--tenant", "t"), "--tenant"),
    (("post", "--from-file", "-", "--usage", "0"), "--usage"),
    (("post", "--from-file", "-", "--metadata", "a=b"), "--metadata"),
    ((*POST, "--usage", "1", "--outbox", ""), "--outbox"),
    ((*POST, "--usage", "1", "--outbox", "/"), "--outbox"),
    ((*POST, "--usage", "1", "--outbox", "sqlite://x"), "--outbox"),
    ((*POST, "--usage", "1", "--config", "missing.env"), "--config"),
    ((*POST, "--usage", "1", "--config", "."), "--config"),
    (("status", "--outbox", ":memory:"), "--outbox"),
    (("status", "--config", ""), "--config"),
    (("status", "extra"), "extra"),
    (("worker", "--metrics", "x"), "--metrics"),
    (("worker", "--api-key", "secret"), "--api-key"),
    (("worker", "extra"), "extra"),
    (("flush", "--timeout", "soon"), "--timeout"),
    (("flush", "--timeout", "-1"), "--timeout"),
    (("flush", "--timeout", "nan"), "--timeout"),
    (("flush", "--timeout", "inf"), "--timeout"),
    (("flush", "extra"), "extra"),
    (("dead-letters", "nonsense"), "nonsense"),
    (("dead-letters", "show"), "KEY"),
    (("dead-letters", "show", "a", "b"), "b"),
    (("dead-letters", "replay"), "--all"),
    (("dead-letters", "replay", "--yes"), "--all"),
    (("dead-letters", "purge", "--yes"), "--all"),
    (("dead-letters", "purge", "--all", "--yes", "--export", "x", "--no-export"), "--export"),
    (("dead-letters", "replay", "--all", "--rate", "0"), "--rate"),
    (("dead-letters", "replay", "--all", "--rate", "-1"), "--rate"),
    (("dead-letters", "replay", "--all", "--rate", "nan"), "--rate"),
    (("dead-letters", "replay", "--all", "--rate", "fast"), "--rate"),
    *(
        (("dead-letters", command, *more), option)
        for command in ("list", "replay", "purge")
        for more, option in (
            (("--limit", "0"), "--limit"),
            (("--limit", "few"), "--limit"),
            (("--since", "yesterday"), "--since"),
            (("--until", ""), "--until"),
            (("--since", "2026-11-02", "--until", "2026-11-01"), "--until"),
            (("--all", "--tenant", "t"), "--all"),
            (("--all", "KEY"), "--all"),
            (("--outbox", ""), "--outbox"),
        )
    ),
    *(
        (("dead-letters", "list", "--since", instant), "--since")
        for instant in (
            "20261101",  # a date without hyphens is not a number of milliseconds
            "1790000000",  # seconds
            "1790000000000000",  # microseconds
            "-1790000000000",
            "2026-13-01",
            "2026-02-29",
            "2026-11-01T24:01Z",
            "2026-11-01T08:30+25:00",
            "2026-11-01T",
            "2026-11-01Z",
            "٢٠٢٦-١١-٠١",  # noqa: RUF001  # digits, but not ours
        )
    ),
    (("meters", "extra"), "extra"),
    (("migrate", "--outbox", "file:x"), "--outbox"),
    (("sandbox", "--port", "-1"), "--port"),
    (("sandbox", "--port", "65536"), "--port"),
    (("sandbox", "--port", "http"), "--port"),
    (("sandbox", "--host", ""), "--host"),
    (("sandbox", "--host", "no such host"), "--host"),
    (("sandbox", "--topic", "a b"), "--topic"),
    (("sandbox", "--fault", "down"), "--fault"),
    (("sandbox", "--fault", "[]"), "--fault"),
    (("sandbox", "--fault", "{}"), "--fault"),
    (("sandbox", "--fault", '{"fault": "flood"}'), "--fault"),
    (("sandbox", "--fault", '{"fault": "slow"}'), "--fault"),
    (("sandbox", "--fault", '{"fault": "slow", "seconds": "x"}'), "--fault"),
    (("sandbox", "--fault", '{"fault": "down", "self": 1}'), "--fault"),
    (("demo", "--from-file", "missing.jsonl"), "--from-file"),
    (("demo", "--from-file", "."), "--from-file"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=[" ".join(a)[:60] for a, _ in WRONG])
def test_a_wrong_command_line_ends_with_2_and_names_what_is_wrong(
    arguments: tuple[str, ...], named: str, run: Callable[..., Ended], tmp_path: Path
) -> None:
    """Whatever is wrong with an option, its name is in the one line that says so."""
    ended = run(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert named in ended.stderr
    assert re.fullmatch(r"[^\x00-\x1f\x7f]+\n", ended.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("post", "--usage"), ("status", "--watch=no"), ("--no-such",), ()], ids=repr
)
def test_a_long_argument_is_repeated_in_part(
    arguments: tuple[str, ...], run: Callable[..., Ended]
) -> None:
    """What is wrong with a whole file in the place of a value can be read all the same."""
    ended = run(*arguments, "9" * 100_000)
    assert (ended.code, len(ended.stderr) < 2000) == (2, True)
    assert "--help)" in ended.stderr


def refused_text(setting: Any) -> str:
    """Return a text that the setting does not take."""
    for text in ("", "-1", "no such"):
        try:
            setting.parse(text)
        except ValueError:
            return text
    raise AssertionError(setting.field)


DELIVERY = [
    setting
    for setting in SETTINGS
    if not setting.secret and setting.field not in ("outbox", "when_full", "durability")
]


@pytest.mark.parametrize("command", ["worker", "flush"])
@pytest.mark.parametrize("setting", DELIVERY, ids=lambda setting: setting.field)
def test_each_setting_of_a_delivery_is_an_option_that_refuses_what_the_setting_refuses(
    command: str, setting: Any, run: Callable[..., Ended]
) -> None:
    """The options of worker and flush are those of the settings table, with the same rules."""
    option = f"--{setting.field.replace('_', '-')}"
    ended = run(command, option, refused_text(setting))
    assert (ended.code, ended.stdout) == (2, "")
    assert f"'{option}'" in ended.stderr


@pytest.mark.parametrize(
    "option",
    ["--ca-bundle", "--client-cert", "--api-key-file", "--stream-token-file"],
)
def test_an_option_that_names_a_missing_file_ends_with_2(
    option: str, run: Callable[..., Ended]
) -> None:
    """What only the settings can find out is told of the option all the same."""
    ended = run("worker", option, "missing.pem")
    assert (ended.code, f"'{option}'" in ended.stderr) == (2, True)


def test_options_that_contradict_each_other_end_with_2(run: Callable[..., Ended]) -> None:
    """Settings are checked together, whatever their source."""
    ended = run("flush", "--backoff-base", "10", "--backoff-max", "1")
    assert (ended.code, "--backoff-max" in ended.stderr) == (2, True)


def test_secrets_are_no_options() -> None:
    """The arguments of a process can be read by everybody on the machine."""
    names = {
        option
        for command in main.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert {"--api-key-file", "--stream-token-file"} <= names
    assert not {"--api-key", "--stream-token"} & names


@pytest.mark.parametrize("command", ["status", "flush", "worker", "migrate"])
def test_a_wrong_setting_in_the_environment_ends_with_2(
    command: str, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting is named like an option: the one line says which it is."""
    monkeypatch.setenv("METER_BATCH_SIZE", "lots")
    ended = run(command)
    assert (ended.code, ended.stdout) == (2, "")
    assert "METER_BATCH_SIZE" in ended.stderr


def test_a_wrong_setting_in_the_file_ends_with_2(run: Callable[..., Ended], tmp_path: Path) -> None:
    """--config names the settings file, and what is wrong in it is said."""
    (tmp_path / "settings.env").write_text("METER_TOPIC=a b\n")
    ended = run("status", "--config", "settings.env")
    assert (ended.code, "METER_TOPIC" in ended.stderr) == (2, True)


def test_no_command_shows_the_commands_and_ends_with_2(run: Callable[..., Ended]) -> None:
    """Whoever types the name alone sees what there is."""
    for arguments in ((), ("dead-letters",)):
        ended = run(*arguments)
        assert (ended.code, ended.stdout) == (2, "")
        assert "Commands:" in ended.stderr


# -- help ------------------------------------------------------------------------------


def all_commands(group: click.Group = main, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the names of all commands."""
    return [
        names
        for name, command in group.commands.items()
        for names in (
            all_commands(command, (*prefix, name))
            if isinstance(command, click.Group)
            else [(*prefix, name)]
        )
    ]


def test_the_help_lists_the_exit_codes(run: Callable[..., Ended]) -> None:
    """Whoever writes a script finds what it may rely on."""
    ended = run("--help")
    assert (ended.code, ended.stderr) == (0, "")
    for line in ("0  done", "1  refused, failed, or not all done", "2  wrong option"):
        assert line in ended.stdout


@pytest.mark.parametrize("names", all_commands(), ids=" ".join)
def test_each_command_and_option_has_a_help(
    names: tuple[str, ...], run: Callable[..., Ended]
) -> None:
    """Nobody has to read the code, and what uses the outbox can be told which one."""
    ended = run(*names, "--help")
    assert (ended.code, ended.stderr) == (0, "")
    command: click.Command = main
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []
    if names[0] not in ("meters", "service", "sandbox", "demo", "completion"):
        assert "--outbox PATH" in ended.stdout
        assert "METER_OUTBOX" in ended.stdout
        assert "--config FILE" in ended.stdout


def test_the_first_sentence_of_each_help_fits_the_list_of_commands(
    run: Callable[..., Ended],
) -> None:
    """The lists of commands show whole sentences."""
    assert "..." not in run("--help").stdout.partition("Commands:")[2]
    assert "..." not in run("dead-letters", "--help").stdout.partition("Commands:")[2]


def test_the_version_is_that_of_the_library(run: Callable[..., Ended]) -> None:
    """Whoever reports a fault can say which version it is in."""
    assert run("--version") == (0, f"meter-lib {__version__}\n", "")


def test_the_module_and_the_console_script_are_the_same() -> None:
    """`python -m meter_worker` is `meter-lib`, by that name too."""
    script = os.path.join(os.path.dirname(sys.executable), "meter-lib")
    shown = subprocess.run([script, "post", "--help"], capture_output=True, check=True)
    assert run_process("post", "--help") == (0, shown.stdout.decode(), "")
    assert "meter-lib post" in shown.stdout.decode()


# -- post ------------------------------------------------------------------------------


def test_post_prints_the_key_alone_once_the_event_is_on_the_disk(path: Path) -> None:
    """A script can take the output as it is."""
    ended = run_process(*POST, "--usage", "3")
    assert (ended.code, ended.stderr) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{32}\n", ended.stdout)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT idempotency_key, total_usage FROM events").fetchall() == [
            (ended.stdout.strip(), 3)
        ]
    connection.close()


def test_post_prints_the_receipt_as_json(run: Callable[..., Ended]) -> None:
    """The receipt of the API, with what was said passed on."""
    key = ("--idempotency-key", "k1")
    ended = run(*POST, "--end-time", str(TIME), "--metadata", "a=b=c", *key, "--json")
    receipt = {"idempotency_key": "k1", "event_time": TIME}
    assert (ended.code, ended.json) == (0, {"status": "queued", **receipt})
    again = run(*POST, "--end-time", str(TIME), "--metadata", "a=b=c", *key, "--json")
    assert (again.code, again.json) == (0, {"status": "duplicate", **receipt})


def test_post_refuses_a_known_key_with_other_content(run: Callable[..., Ended]) -> None:
    """Another event needs another key; the first one stands."""
    run(*POST, "--usage", "1", "--idempotency-key", "k1")
    ended = run(*POST, "--usage", "2", "--idempotency-key", "k1")
    assert (ended.code, ended.stdout) == (2, "")
    assert "'--idempotency-key'" in ended.stderr


def test_post_warns_of_an_unknown_meter_and_records_it(run: Callable[..., Ended]) -> None:
    """The backend has the last word on meters; the warning does not get into the result."""
    ended = run(*POST, "--meter", "page.procesed.basic", "--usage", "1")
    assert ended.code == 0
    assert re.fullmatch(r"[0-9a-f]{32}\n", ended.stdout)
    assert ended.stderr.startswith("meter-lib: warning: meter id 'page.procesed.basic'")


def test_post_ends_with_1_where_the_outbox_is_locked(
    run: Callable[..., Ended], outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outbox that refuses is a failure, not a wrong option."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.1)
    outbox.status()
    with open(f"{outbox.location}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = run(*POST, "--usage", "1")
    assert (ended.code, ended.stdout) == (1, "")
    assert "is locked" in ended.stderr


@pytest.mark.parametrize("stdout", ["/dev/full", None])
def test_post_that_cannot_print_ends_without_a_traceback(stdout: str | None) -> None:
    """A full disk or a closed stdout is said in one line, or not at all."""
    command = [sys.executable, "-m", "meter_worker", *POST, "--usage", "1"]
    if stdout is None:
        ended = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        return
    with open(stdout, "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (1, b"meter-lib: No space left on device\n")


def accepted(path: Path) -> int:
    """Return how many events were recorded so far."""
    opened = open_outbox(Settings(outbox=str(path)), read_only=True)
    try:
        return opened.status().accepted
    except OutboxUnavailable:  # not there yet, or just being made
        return 0
    finally:
        opened.close()


# -- post --from-file ------------------------------------------------------------------


def recorded_usage(path: Path) -> list[int]:
    """Return the units recorded, in the order of the events."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT total_usage FROM events ORDER BY seq")]
    finally:
        connection.close()


def test_a_file_is_recorded_in_its_order(
    run: Callable[..., Ended], path: Path, tmp_path: Path
) -> None:
    """Each line is one event, whichever commit it is in."""
    lines = [EVENT | {"total_usage": number} for number in range(1234)]
    ended = run("post", "--from-file", write_lines(tmp_path / "usage.jsonl", lines))
    assert ended == (0, "1,234 events recorded, 0 duplicates, 0 bad lines\n", "")
    assert recorded_usage(path) == list(range(1234))


def test_a_file_may_come_by_stdin(path: Path) -> None:
    """`-` is stdin; a byte order mark, CRLF, blank lines and a missing last newline do no harm."""
    line = json.dumps(EVENT).encode()
    ended = run_process(
        "post", "--from-file", "-", stdin=b"\xef\xbb\xbf" + line + b"\r\n\n  \r\n" + line
    )
    assert ended == (0, "2 events recorded, 0 duplicates, 0 bad lines\n", "")
    assert recorded_usage(path) == [1, 1]


def test_an_empty_file_is_nothing_to_do(run: Callable[..., Ended], tmp_path: Path) -> None:
    """No lines, no events, no error."""
    ended = run("post", "--from-file", write_lines(tmp_path / "empty", []), "--json")
    assert (ended.code, ended.json) == (
        0,
        {"bad_lines": [], "recorded": 0, "duplicates": 0, "bad": 0, "stopped_at_line": None},
    )


BAD_LINES = {
    b"nonsense": "not JSON",
    b'{"tenant_id": "t"': "not JSON",
    b"[]": "list",
    b"3": "3",
    b"null": "None",
    json.dumps(EVENT | {"usage": 3}).encode(): "'usage'",
    b'{"tenant_id": "t", "device_id": "d", "total_usage": 1}': "meter_id",
    b'{"tenant_id": "t", "device_id": "d", "meter_id": "m"}': "total_usage",
    json.dumps(EVENT | {"total_usage": -1}).encode(): "total_usage",
    json.dumps(EVENT | {"total_usage": 1.0}).encode(): "total_usage",
    json.dumps(EVENT | {"total_usage": True}).encode(): "total_usage",
    json.dumps(EVENT | {"total_usage": "1"}).encode(): "total_usage",
    json.dumps(EVENT | {"tenant_id": 7}).encode(): "tenant_id",
    json.dumps(EVENT | {"tenant_id": "\x1b"}).encode(): "tenant_id",
    json.dumps(EVENT | {"tenant_id": "\ud800"}).encode(): "tenant_id",
    json.dumps(EVENT | {"timestamp": 1_790_000_000}).encode(): "seconds",
    json.dumps(EVENT | {"metadata": []}).encode(): "metadata",
    json.dumps(EVENT | {"metadata": {"a": {}}}).encode(): "metadata",
    json.dumps(EVENT | {"metadata": {"a": float("nan")}}).encode(): "NaN",
    json.dumps(EVENT | {"metadata": {"a": float("inf")}}).encode(): "Infinity",
    b'{"metadata": {"a": 1e999}, ' + json.dumps(EVENT).encode()[1:]: "inf",
    b'{"tenant_id": "u", ' + json.dumps(EVENT).encode()[1:]: "tenant_id' is there twice",
    b'{"metadata": {"a": 1, "a": 2}, ' + json.dumps(EVENT).encode()[1:]: "'a' is there twice",
    b'{"total_usage": ' + b"9" * 5000 + b"}": "too long",
    b"[" * 100_000: "nested too deeply",
    b'{"tenant_id": "\xff"}': "not UTF-8",
    json.dumps(EVENT | {"metadata": {"a": "x" * 2**20}}).encode(): "longer than 1048576 bytes",
    b" " * (2**20 + 1): "longer than 1048576 bytes",
    b"x" * 3 * 2**20: "longer than 1048576 bytes",
    json.dumps(EVENT | {"idempotency_key": "known", "total_usage": 2}).encode(): "'known'",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=[why[:20] for why in BAD_LINES.values()])
def test_a_bad_line_is_named_and_left_out(
    bad: bytes, run: Callable[..., Ended], path: Path, tmp_path: Path
) -> None:
    """The lines around it are recorded, its number and what is wrong go to stderr."""
    lines = [EVENT | {"idempotency_key": "known"}, b"", bad, EVENT]
    file = write_lines(tmp_path / "usage.jsonl", lines)
    ended = run("post", "--from-file", file)
    assert (ended.code, ended.stdout) == (1, "2 events recorded, 0 duplicates, 1 bad line\n")
    assert re.fullmatch(rf"line 3: [^\x00-\x1f]*{re.escape(BAD_LINES[bad])}.*\n", ended.stderr)
    assert recorded_usage(path) == [1, 1]


def test_bad_lines_are_listed_as_json(run: Callable[..., Ended], tmp_path: Path) -> None:
    """A program gets the numbers and reasons of the lines to mend, in the order of the file."""
    key = {"idempotency_key": "k"}
    lines = [EVENT | key, EVENT | key | {"total_usage": 2}, b"x", EVENT | key, b"y", EVENT]
    ended = run("post", "--from-file", write_lines(tmp_path / "usage.jsonl", lines), "--json")
    assert ended.code == 1
    summary = ended.json
    bad_lines = summary.pop("bad_lines")
    assert summary == {"recorded": 2, "duplicates": 1, "bad": 3, "stopped_at_line": None}
    assert [sorted(line) for line in bad_lines] == [["line", "why"]] * 3
    assert [line["line"] for line in bad_lines] == [2, 3, 5]
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == [
        "line 2",
        "line 3",
        "line 5",
    ]


def test_a_file_with_keys_can_be_posted_again(
    run: Callable[..., Ended], path: Path, tmp_path: Path
) -> None:
    """After an interruption the whole file may go in again: nothing is recorded twice."""
    lines = [EVENT | {"idempotency_key": f"k{number}"} for number in range(700)]
    run("post", "--from-file", write_lines(tmp_path / "half", lines[:600]))
    ended = run("post", "--from-file", write_lines(tmp_path / "whole", lines))
    assert ended == (0, "100 events recorded, 600 duplicates, 0 bad lines\n", "")
    assert len(recorded_usage(path)) == 700


def test_a_file_of_conflicts_is_left_out_whole_and_quickly(
    run: Callable[..., Ended], tmp_path: Path
) -> None:
    """Even where every second line has a used key, the others are recorded."""
    lines: list[object] = []
    for number in range(600):
        lines.append(EVENT | {"idempotency_key": f"k{number}"})
        lines.append(EVENT | {"idempotency_key": f"k{number}", "total_usage": 2})
    ended = run("post", "--from-file", write_lines(tmp_path / "usage.jsonl", lines))
    assert (ended.code, ended.stdout) == (1, "600 events recorded, 0 duplicates, 600 bad lines\n")


class CountingRecorder:
    """The real outbox, with the sizes of its commits."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.sizes: list[int] = []

    def append(self, events: Sequence[Any], *, now: int, uptime: Uptime | None = None) -> list[Any]:
        """Append, and take note."""
        self.sizes.append(len(events))
        return self._outbox.append(events, now=now, uptime=uptime)


def test_lines_are_recorded_in_commits_of_several_hundred(outbox: Outbox, tmp_path: Path) -> None:
    """One sync of the disk serves many lines, but never more than an outbox of 4 MiB takes."""
    recorder = CountingRecorder(outbox)
    lines = [EVENT] * 1200 + [EVENT | {"metadata": {"text": "x" * 8000}}] * 60
    with open(write_lines(tmp_path / "usage.jsonl", lines), "rb") as file:
        list(LineImport(recorder, ManualClock(TIME)).run(file))
    assert recorder.sizes[:2] == [500, 500]
    assert sum(recorder.sizes) == 1260
    assert max(recorder.sizes[3:]) < 20


def test_a_full_outbox_says_how_far_the_file_came(
    path: Path, tmp_path: Path, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded is known to the line, so that the rest can go in later."""
    monkeypatch.setenv("METER_MAX_BYTES", "4 MiB")
    lines: list[object] = [
        EVENT | {"total_usage": number, "metadata": {"text": "x" * 8000}} for number in range(600)
    ]
    lines[1] = b"bad"
    ended = run("post", "--from-file", write_lines(tmp_path / "usage.jsonl", lines), "--json")
    recorded = recorded_usage(path)
    assert 0 < len(recorded) < 600
    assert recorded == [0, *range(2, len(recorded) + 1)]
    stopped_at = len(recorded) + 2
    summary = ended.json
    assert (ended.code, summary["recorded"], summary["bad"], summary["stopped_at_line"]) == (
        1,
        len(recorded),
        1,
        stopped_at,
    )
    assert f"stopped at line {stopped_at}:" in ended.stderr
    assert "is full" in ended.stderr


def test_an_interrupted_file_says_how_far_it_came(path: Path) -> None:
    """Ctrl-C ends between two commits, with the number of the line to go on from."""
    process = subprocess.Popen(
        [sys.executable, "-m", "meter_worker", "post", "--from-file", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(EVENT).encode().ljust(200) + b"\n")
    process.stdin.write((json.dumps(EVENT).encode() + b"\n") * 599)
    process.stdin.flush()
    eventually(lambda: accepted(path))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    recorded = len(recorded_usage(path))
    assert recorded == 500
    assert process.returncode == 1
    assert stdout == b"500 events recorded, 0 duplicates, 0 bad lines\n"
    assert b"stopped at line 501:" in stderr
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr


def test_ctrl_c_while_a_command_is_loaded_leaves_no_traceback() -> None:
    """Whoever changes their mind at once is answered like everybody else."""
    probe = """
import runpy, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "meter_worker.cli.application":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
runpy.run_module("meter_worker", run_name="__main__")
"""
    ended = subprocess.run(
        [sys.executable, "-c", probe, "meters"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "meter-lib: interrupted\n")


def peak_kib(count: int) -> int:
    """Return the peak memory of an import of so many lines, every tenth of them bad."""
    probe = (
        "import resource, sys\n"
        "from meter_worker.cli import main\n"
        "try: main(['post', '--from-file', '-', '--json'])\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    lines = ((json.dumps(EVENT).encode() + b"\n") * 9 + b"bad\n") * (count // 10)
    ended = subprocess.run(
        [sys.executable, "-c", probe], input=lines, capture_output=True, check=False
    )
    peak = int(ended.stderr.splitlines()[-1])
    return peak // 1024 if sys.platform == "darwin" else peak


def test_memory_does_not_grow_with_the_file() -> None:
    """A file of any length goes through a device of any size."""
    assert peak_kib(40_000) < peak_kib(4_000) + 4 * 1024


# -- reading commands ------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("flush",),
        ("migrate",),
        ("migrate", "--check"),
        ("dead-letters", "list"),
        ("dead-letters", "list", "--json"),
        ("dead-letters", "export", "-"),
        ("dead-letters", "show", "k"),
        ("dead-letters", "replay", "--all"),
        ("dead-letters", "purge", "--all", "--yes"),
    ],
    ids=" ".join,
)
def test_a_missing_outbox_is_said_and_not_made(
    arguments: tuple[str, ...], run: Callable[..., Ended], tmp_path: Path
) -> None:
    """Whoever only looks, or misspells a path, leaves no file behind."""
    ended = run(*arguments)
    assert (ended.code, ended.stdout) == (1, "")
    assert f"there is no outbox at {tmp_path}/outbox.db" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("status",), ("migrate", "--check")])
def test_a_file_that_is_no_outbox_is_left_alone(
    command: tuple[str, ...], run: Callable[..., Ended], path: Path
) -> None:
    """To whoever only looks, a wrong path does no harm to what is there."""
    path.write_bytes(b"precious" * 100)
    ended = run(*command)
    assert (ended.code, ended.stdout) == (1, "")
    assert str(path) in ended.stderr
    assert path.read_bytes() == b"precious" * 100


def test_status_as_json_has_all_counts(run: Callable[..., Ended], outbox: Outbox) -> None:
    """What scripts and dashboards rely on."""
    bury(outbox, 3)
    run("dead-letters", "purge", "k0", "--yes", "--no-export")
    run("dead-letters", "replay", "k1")
    ended = run("status", "--json")
    assert (ended.code, ended.stderr) == (0, "")
    shown = ended.json
    assert 0 <= shown.pop("oldest_pending_seconds") < 60
    assert shown.pop("bytes") > 0
    assert re.fullmatch("[0-9a-f]{32}", shown.pop("outbox_id"))
    assert isinstance(shown.pop("next_attempt_at"), int)
    assert shown == {
        "outbox": outbox.location,
        "schema_version": meter_migrations.LATEST,
        "copied_from": None,
        "copied_at": None,
        "accepted": 3,
        "pending": 1,
        "dead": 1,
        "delivered": 0,
        "removed": 1,
        "refused": 0,
        "held_streams": 1,
        "last_success_at": None,
        "last_error": None,
        "worker": {"running": False, "pid": None},
        "set_aside": [],
        "links": [],
    }


def test_status_tells_the_latest_error_and_who_delivers(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """The error is the newest of all links, the success that of the events."""
    outbox.set_link(Link("accounts", 1, 5, 9, 4, "accounts are down", 8))
    outbox.set_link(Link("events", 2, 6, 9, 7, "events are down", 6))
    assert outbox.try_hold()
    shown = run("status", "--json").json
    assert (shown["last_error"], shown["last_success_at"]) == ("accounts are down", 7)
    assert shown["worker"] == {"running": True, "pid": os.getpid()}
    assert [link["name"] for link in shown["links"]] == ["accounts", "events"]


def test_status_says_in_sentences_what_needs_attention(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """Whoever is on call reads what is wrong; no word of a peer steers the terminal."""
    bury(outbox, 1)
    outbox.append([], now=TIME)
    run(*POST, "--usage", "1")
    outbox.settle(
        Settlement(refused_alone=outbox.due(now=TIME, limit=9, max_bytes=10**6)), now=TIME
    )
    outbox.set_link(Link("events", 3, TIME, TIME + 60_000, None, "\x1b[2Jrefused", TIME))
    ended = run("status")
    assert (ended.code, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    for words in (
        "No worker is running",
        "The link to events is down since 2026-09-21 14:13:20Z, 3 failures in a row: ",
        r": \x1b[2Jrefused. Next attempt: 2026-09-21 14:14:20Z.",
        "1 pending event refused by the backend",
        "1 dead letter: meter-lib dead-letters list",
    ):
        assert words in ended.stdout


def test_status_of_a_healthy_outbox_is_a_table_and_no_more(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """Where nothing needs attention, nothing asks for it."""
    outbox.set_account("t", Account('"c"', TIME, 0))
    assert outbox.try_hold()
    ended = run("status")
    assert re.fullmatch(r"([a-z]+( [a-z]+)? {2,}\S.*\n)+", ended.stdout)


def test_reading_commands_write_nothing(
    run: Callable[..., Ended], outbox: Outbox, tmp_path: Path
) -> None:
    """Looking leaves the file and its permissions as they are."""
    bury(outbox, 2)
    outbox.close()
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if "-" not in file.name}
    for arguments in (("status",), ("dead-letters", "list"), ("dead-letters", "show", "k0")):
        assert run(*arguments).code == 0
    after = {file: file.read_bytes() for file in tmp_path.iterdir() if "-" not in file.name}
    assert after == before


# -- dead letters ----------------------------------------------------------------------


def test_dead_letters_as_json_are_objects_with_all_fields(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """What scripts rely on, instants in milliseconds."""
    with MeterClient(outbox.location) as client:
        client.post("t", "d", "m", start_time=TIME, idempotency_key="k", metadata={"a": "ü\x1b"})
    (event,) = outbox.due(now=TIME, limit=1, max_bytes=1)
    outbox.settle(Settlement(buried=[Burial(event, "too_large", "413")]), now=DIED_AT)
    expected = {
        "idempotency_key": "k",
        "tenant_id": "t",
        "device_id": "d",
        "meter_id": "m",
        "total_usage": None,
        "start_time": TIME,
        "end_time": None,
        "event_time": TIME,
        "metadata": {"a": "ü\x1b"},
        "seq": 1,
        "reason": "too_large",
        "detail": "413",
        "attempts": 1,
        "dead_at": DIED_AT,
        "customer_id": None,
        "replays": 0,
    }
    listed, shown = (
        run("dead-letters", "list", "--json"),
        run("dead-letters", "show", "k", "--json"),
    )
    assert (listed.code, listed.json) == (0, [expected])
    assert (shown.code, shown.json) == (0, expected)


def test_a_list_of_no_dead_letters_is_empty(run: Callable[..., Ended], outbox: Outbox) -> None:
    """An outbox without any is good news, not an error."""
    outbox.status()
    assert run("dead-letters", "list", "--json") == (0, "[]\n", "")
    assert run("dead-letters", "list") == (0, "no dead letters\n", "")


def test_a_table_shows_the_first_50_and_json_shows_all(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """A screen is not flooded, and it is said how many more there are."""
    bury(outbox, 1203)
    table = run("dead-letters", "list").stdout.splitlines()
    assert (len(table), table[-1]) == (52, "and 1,153 more dead letters: --json lists all")
    assert table[50].startswith("k49 ")
    assert len(run("dead-letters", "list", "--json").json) == 1203
    assert len(run("dead-letters", "list", "--limit", "50").stdout.splitlines()) == 51


def test_nothing_that_is_shown_steers_the_terminal(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """Control characters of ids, metadata and answers are written out, the columns stay aligned."""
    bury(outbox, 1, detail="\x1b[31m\u202e no\n", tenant_id="東京\u202e", metadata={"a\x07": "\r"})
    for arguments in (("list",), ("show", "k0")):
        ended = run("dead-letters", *arguments)
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", ended.stdout) is None
        assert r"\x1b[31m\u202e no\n" in ended.stdout
    heads, row = run("dead-letters", "list").stdout.splitlines()
    assert row.index("d ") + 2 == heads.index("DEVICE")  # two characters take two columns each


SELECTED = [
    (("--all",), {"k0", "k1", "k2", "k3"}),
    (("k1", "k3"), {"k1", "k3"}),
    (("--tenant", "t1"), {"k1", "k3"}),
    (("--device", "d2"), {"k2"}),
    (("--meter", "m3"), {"k3"}),
    (("--reason", "rejected"), {"k0"}),
    (("--since", str(TIME + 2)), {"k2", "k3"}),
    (("--until", str(TIME + 2)), {"k0", "k1"}),
    (("--since", "0", "--until", str(TIME + 1)), {"k0"}),
    (("--until", "8640000"), set()),
    (("--since", "2026-09-21T14:13:20.001Z"), {"k1", "k2", "k3"}),
    (("--since", "2026-09-21T16:13:20,002+02:00"), {"k2", "k3"}),
    (("--since", "2026-09-21 14:13:20.003"), {"k3"}),
    (("--until", "2026-09-21T14:13-0000"), set()),
    (("--since", "2026-09-21", "--until", "2026-09-22"), {"k0", "k1", "k2", "k3"}),
    (("--limit", "2"), {"k0", "k1"}),
    (("--all", "--limit", "1"), {"k0"}),
    (("--tenant", "t1", "--meter", "m3"), {"k3"}),
    (("--tenant", "t1", "--reason", "rejected"), set()),
]


@pytest.fixture
def four(outbox: Outbox) -> Outbox:
    """Four dead letters that differ in everything."""
    with MeterClient(outbox.location) as client:
        for number in range(4):
            client.post(
                f"t{number % 2}",
                f"d{number}",
                f"m{number}",
                1,
                timestamp=TIME + number,
                idempotency_key=f"k{number}",
            )
    reasons = ("rejected", "too_large", "customer_not_found", "attempts_exhausted")
    due = outbox.due(now=TIME, limit=9, max_bytes=10**6)
    buried = [Burial(e, reason, "") for e, reason in zip(due, reasons, strict=True)]
    outbox.settle(Settlement(buried=buried), now=DIED_AT)
    return outbox


def left(outbox: Outbox) -> set[str]:
    """Return the keys of the dead letters that there are."""
    everything: Sequence[DeadLetter] = list(outbox.dead_letters(Selector()))
    return {letter.idempotency_key for letter in everything}


@pytest.mark.parametrize(("selectors", "keys"), SELECTED, ids=[" ".join(s) for s, _ in SELECTED])
def test_selectors_mean_the_same_to_every_command(
    selectors: tuple[str, ...], keys: set[str], four: Outbox, run: Callable[..., Ended]
) -> None:
    """What list shows is what replay and purge take, and all selectors must fit."""
    listed = run("dead-letters", "list", "--json", *selectors)
    assert (listed.code, {letter["idempotency_key"] for letter in listed.json}) == (0, keys)
    count = f"{len(keys)} dead letter{'' if len(keys) == 1 else 's'}"
    for command, verb in (("replay", "replayed"), ("purge", "purged")):
        told = run("dead-letters", command, *selectors, "--dry-run")
        assert (told.code, told.stderr) == (0, "")
        assert told.stdout.startswith(f"{count} would be {verb}\n")
    assert left(four) == {"k0", "k1", "k2", "k3"}
    purged = run("dead-letters", "purge", *selectors, "--yes", "--no-export")
    assert purged == (0, f"{count} purged\n", "")
    assert left(four) == {"k0", "k1", "k2", "k3"} - keys


@pytest.mark.parametrize("command", ["list", "replay", "purge"])
def test_an_unknown_key_is_said_and_the_others_are_dealt_with(
    command: str, four: Outbox, run: Callable[..., Ended]
) -> None:
    """A slip in one of several keys is noticed; it ends with 1, as not all is done."""
    ended = run("dead-letters", command, "k1", "k9\x1b", *(["--yes"] if command != "list" else []))
    assert ended.code == 1
    assert r"there is no dead letter 'k9\x1b'" in ended.stderr
    assert ("k1" in left(four)) == (command == "list")


def test_show_of_an_unknown_key_ends_with_1(four: Outbox, run: Callable[..., Ended]) -> None:
    """There is nothing to show, and that is said."""
    del four
    ended = run("dead-letters", "show", "k9")
    assert (ended.code, ended.stdout) == (1, "")
    assert "'k9'" in ended.stderr


def test_replay_makes_events_due_again_under_their_keys(
    four: Outbox, run: Callable[..., Ended]
) -> None:
    """They are pending as they were, and no longer dead; no question where nobody can answer."""
    ended = run("dead-letters", "replay", "--tenant", "t1")
    assert (ended.code, ended.stdout) == (0, "2 dead letters replayed\n")
    due = four.due(now=2 * TIME, limit=9, max_bytes=10**6)
    assert {event.idempotency_key for event in due} == {"k1", "k3"}
    assert (four.status().pending, four.status().dead) == (2, 2)


def test_replay_keeps_to_its_rate(outbox: Outbox, run: Callable[..., Ended]) -> None:
    """A backend that has just come back is not run over."""
    bury(outbox, 11)
    begun_at = time.monotonic()
    assert run("dead-letters", "replay", "--all", "--rate", "20").code == 0
    assert 0.4 < time.monotonic() - begun_at < 5
    assert outbox.status().pending == 11


def test_many_are_replayed_and_purged_in_small_commits(
    outbox: Outbox, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever records meanwhile waits for a few hundred at most, not for all."""
    sizes: list[int] = []
    for name in ("replay", "purge"):
        original = getattr(type(outbox), name)

        def noted(self: Outbox, seqs: Any, *, real: Any = original, **more: Any) -> int:
            sizes.append(len(seqs))
            changed: int = real(self, seqs, **more)
            return changed

        monkeypatch.setattr(type(outbox), name, noted)
    bury(outbox, 1201)
    replayed = run("dead-letters", "replay", "--all", "--limit", "601")
    assert replayed.stdout == "601 dead letters replayed\n"
    purged = run("dead-letters", "purge", "--all", "--yes", "--no-export")
    assert purged.stdout == "600 dead letters purged\n"
    assert sizes == [500, 101, 500, 100]


def test_purge_needs_an_agreement(four: Outbox, run: Callable[..., Ended]) -> None:
    """Without --yes, and with nobody there to ask, nothing is removed."""
    ended = run("dead-letters", "purge", "--all")
    assert (ended.code, ended.stdout) == (2, "")
    assert "--yes" in ended.stderr
    assert len(left(four)) == 4


def test_purge_writes_a_private_file_first(
    four: Outbox, run: Callable[..., Ended], tmp_path: Path
) -> None:
    """What is removed is in a file beside the outbox, as list --json shows it."""
    listed = run("dead-letters", "list", "--json", "--tenant", "t1").json
    ended = run("dead-letters", "purge", "--tenant", "t1", "--yes")
    assert (ended.code, ended.stdout) == (0, "2 dead letters purged\n")
    (export,) = tmp_path.glob("outbox.db.purged-*.jsonl")
    assert str(export) in ended.stderr
    assert [json.loads(line) for line in export.read_text().splitlines()] == listed
    assert stat.S_IMODE(export.stat().st_mode) == 0o600
    assert (four.status().removed, four.status().dead) == (2, 2)


def test_purge_exports_in_the_same_second_do_not_collide(
    four: Outbox, run: Callable[..., Ended]
) -> None:
    """Each purge has a file of its own."""
    for key in ("k0", "k1", "k2"):
        assert run("dead-letters", "purge", key, "--yes").code == 0
    folder = os.path.dirname(four.location)
    assert len([name for name in os.listdir(folder) if name.endswith(".jsonl")]) == 3


def test_purge_of_nothing_writes_no_file(
    four: Outbox, run: Callable[..., Ended], tmp_path: Path
) -> None:
    """Where nothing fits, nothing is asked, written or removed."""
    del four
    ended = run("dead-letters", "purge", "--tenant", "nobody")
    assert ended == (0, "0 dead letters purged\n", "")
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.parametrize("export", ["taken", "taken-link", "no-such/folder", ".", ""])
def test_purge_overwrites_nothing_and_removes_nothing_without_its_file(
    export: str, four: Outbox, run: Callable[..., Ended], tmp_path: Path
) -> None:
    """A file that is there, or cannot be made, is a wrong --export."""
    (tmp_path / "taken").write_text("precious")
    (tmp_path / "taken-link").symlink_to("elsewhere")
    ended = run("dead-letters", "purge", "--all", "--yes", "--export", export)
    assert (ended.code, ended.stdout) == (2, "")
    assert "'--export'" in ended.stderr
    assert len(left(four)) == 4
    assert (tmp_path / "taken").read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_the_export_is_synced_before_anything_is_removed(
    four: Outbox, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves each dead letter in the outbox or in the file, or in both."""
    synced: list[set[str]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(left(four))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    assert run("dead-letters", "purge", "--all", "--yes", "--export", "x.jsonl").code == 0
    assert synced[:2] == [{"k0", "k1", "k2", "k3"}] * 2  # the file, and its folder
    assert left(four) == set()


def test_an_export_that_fails_removes_nothing(
    four: Outbox, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk leaves the dead letters where they are, and no half a file."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ended = run("dead-letters", "purge", "--all", "--yes", "--export", "x.jsonl")
    assert (ended.code, ended.stdout) == (1, "")
    assert "No space left on device" in ended.stderr
    assert len(left(four)) == 4
    assert not (tmp_path / "x.jsonl").exists()


def on_a_terminal(*arguments: str, answer: bytes) -> tuple[int, str]:
    """Run a command on a terminal of its own, answer its question, and return what it showed."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "meter_worker", *arguments])  # noqa: S606  # no shell is meant
    shown = b""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # how Linux tells the end
                break
        elif shown.rstrip().endswith((b"[y/N]:", b"^C")):
            # Again where need be: Python overlooks a Ctrl-C just before it begins to read.
            os.write(terminal, answer)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("command", ["replay", "purge"])
def test_on_a_terminal_one_is_asked(command: str, four: Outbox) -> None:
    """A no changes nothing and ends with 1, a yes does it, a Ctrl-C is no yes."""
    code, shown = on_a_terminal("dead-letters", command, "--all", answer=b"n\n")
    assert (code, len(left(four))) == (1, 4)
    assert f"{command.capitalize()} 4 dead letters" in shown
    assert "nothing was changed" in shown
    code, shown = on_a_terminal("dead-letters", command, "--all", answer=b"\x03")
    assert (code, len(left(four))) == (1, 4)
    assert "Traceback" not in shown
    code, _ = on_a_terminal("dead-letters", command, "--all", answer=b"y\n")
    assert (code, len(left(four))) == (0, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_progress_is_shown_on_a_terminal_only(run: Callable[..., Ended], tmp_path: Path) -> None:
    """A log or a pipe gets no progress bar, whoever watches does."""
    file = write_lines(tmp_path / "usage.jsonl", [EVENT] * 600)
    code, shown = on_a_terminal("post", "--from-file", file, answer=b"")
    assert (code, "recording" in shown, "100%" in shown) == (0, True, True)
    assert run("post", "--from-file", file).stderr == ""


# -- meters, migrate, demo -------------------------------------------------------------


def test_meters_lists_the_catalogue(run: Callable[..., Ended]) -> None:
    """For people as a table, for programs as JSON."""
    assert run("meters", "--json").json == [meter._asdict() for meter in METERS]
    table = run("meters").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["ID", *(meter.id for meter in METERS)]


def test_migrate_brings_an_outbox_to_the_current_schema(
    run: Callable[..., Ended], path: Path
) -> None:
    """--check only looks: 1 where there is work to do, 0 where there is none."""
    path.touch()
    checked = run("migrate", "--check")
    assert (checked.code, checked.stdout, path.stat().st_size) == (1, "", 0)
    assert "schema 0" in checked.stderr
    migrated = run("migrate")
    assert (migrated.code, migrated.stderr) == (0, "")
    schema = f"schema {meter_migrations.LATEST}"
    assert schema in migrated.stdout
    for arguments in (("migrate", "--check"), ("migrate",)):
        assert run(*arguments) == (0, f"{path} has {schema}, which is current\n", "")


def test_an_outbox_of_a_newer_version_is_left_untouched(
    run: Callable[..., Ended], outbox: Outbox
) -> None:
    """An older program says that it is too old, and ends with 1."""
    outbox.status()
    outbox.close()
    connection = sqlite3.connect(outbox.location)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for arguments in (("migrate",), ("migrate", "--check"), ("status",), (*POST, "--usage", "1")):
        ended = run(*arguments)
        assert (ended.code, ended.stdout) == (1, "")
        assert "newer version" in ended.stderr


@pytest.mark.parametrize(("all_well", "code"), [(True, 0), (False, 1)])
def test_the_demo_ends_with_what_it_found(
    all_well: bool,
    code: int,
    run: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A demo that does not hold what it shows is a failure."""
    asked: list[str | None] = []

    def run_demo(from_file: str | None) -> bool:
        asked.append(from_file)
        return all_well

    monkeypatch.setattr("meter_worker.demo.run_demo", run_demo)
    file = write_lines(tmp_path / "usage.jsonl", [EVENT])
    assert run("demo").code == code
    assert run("demo", "--from-file", file).code == code
    assert asked == [None, file]


# -- whatever happens ------------------------------------------------------------------


def test_a_fault_of_our_own_is_one_line(
    run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a traceback: whoever is on call gets a sentence, and how to learn more."""

    def broken(**_: object) -> object:
        raise ZeroDivisionError("\x1bboom")

    monkeypatch.setattr(Settings, "load", broken)
    ended = run("status")
    assert (ended.code, ended.stdout) == (1, "")
    assert r"ZeroDivisionError: \x1bboom" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_reader_that_goes_away_ends_a_command_quietly(outbox: Outbox) -> None:
    """`meter-lib dead-letters list --json | head -1` has nothing to complain about."""
    bury(outbox, 3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "meter_worker", "dead-letters", "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=10) == 1


def test_any_text_can_be_printed_in_any_encoding(outbox: Outbox) -> None:
    """A terminal that knows few characters gets escapes for the others, not a failure."""
    bury(outbox, 1, tenant_id="東京")
    ended = run_process("dead-letters", "list", PYTHONIOENCODING="iso-8859-1")
    assert (ended.code, r"\u6771\u4eac" in ended.stdout) == (0, True)


def test_commands_may_be_run_one_after_the_other_in_a_program(
    run: Callable[..., Ended], path: Path
) -> None:
    """Nothing of one run is left for the next: no handler, no open outbox, no thread."""
    threads = threading.active_count()
    for _ in range(3):
        run(*POST, "--usage", "1", "--meter", "m.unknown")
        assert run("status").code == 0
    assert len(recorded_usage(path)) == 3
    assert threading.active_count() == threads
