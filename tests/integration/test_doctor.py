"""`meter-lib doctor`: what it finds, what it says to do, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from meter_lib import MeterClient, OutboxUnavailable, file_systems, post_meter_usage
from meter_lib._sqlite import SqliteOutbox
from meter_lib._sqlite.salvage.set_aside import set_aside_files
from meter_lib.outbox import Selector, Settlement
from meter_lib.upkeep import Inspection
from meter_lib.usage import usage_event
from meter_worker.cli import main
from meter_worker.doctor.clock_check import check_clock
from meter_worker.doctor.file_checks import check_space
from meter_worker.doctor.outbox_checks import check_books, check_engine, check_integrity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

NOON = 1_760_000_000_000
MIB = 2**20
PAGE = 1024
CERTIFICATES = Path(__file__).parents[1] / "data" / "tls"


class Answers(BaseHTTPRequestHandler):
    """Answers everything, and notes what it was asked."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012  # emptied by the fixture

    def do_GET(self) -> None:
        """Say that there is no such page."""
        self.asked.append((self.command, self.headers.get("Authorization", "")))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(certificate: Path | None = None) -> Generator[str, None, None]:
    """Serve HTTP, or HTTPS with that certificate, and yield the base URL."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    scheme = "http" if certificate is None else "https"
    yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Examined(NamedTuple):
    """What a doctor said."""

    code: int
    verdict: str
    checks: dict[str, dict[str, str]]

    def of(self, name: str) -> tuple[str, str]:
        """The verdict of a check, and all that it says."""
        check = self.checks[name]
        return check["verdict"], f"{check['found']} {check['remedy']}"


@pytest.fixture
def services() -> Generator[str, None, None]:
    """Both services, answering."""
    Answers.asked.clear()
    with serving() as url:
        yield url


@pytest.fixture
def path(tmp_path: Path, services: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An outbox with 300 events, in a folder of its own."""
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    monkeypatch.setenv("METER_STREAM_URL", services)
    monkeypatch.setenv("METER_ACCOUNTS_URL", services)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "here" / "outbox.db"
    monkeypatch.setenv("METER_OUTBOX", str(path))
    fill(path, 300)
    return path


def fill(path: Path, events: int, *, tenant: str = "t") -> list[str]:
    """Record events, and return their keys."""
    outbox = SqliteOutbox(str(path), max_bytes=64 * MIB)
    receipts = outbox.append(
        [usage_event(tenant, "d", "m", number) for number in range(events)], now=NOON
    )
    outbox.close()
    return [receipt["idempotency_key"] for receipt in receipts]


def damage(path: Path) -> None:
    """Leave zeros where a page in the middle of the events was."""
    content = bytearray(path.read_bytes())
    places = [
        offset
        for offset in range(PAGE, len(content), PAGE)
        if content[offset] == 13 and b"tenant_id" in content[offset : offset + PAGE]
    ]
    place = places[len(places) // 2]
    content[place : place + PAGE] = bytes(PAGE)
    path.write_bytes(content)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line here, and return its exit code, stdout and stderr."""

    def run_here(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.out, printed.err

    return run_here


@pytest.fixture
def examined(run: Callable[..., tuple[int, str, str]]) -> Callable[..., Examined]:
    """Ask the doctor, and return what it said."""

    def examine(*arguments: str) -> Examined:
        code, out, err = run("doctor", "--json", *arguments)
        assert out, err
        said = json.loads(out)
        return Examined(code, said["verdict"], {check["name"]: check for check in said["checks"]})

    return examine


# -- a healthy outbox -------------------------------------------------------------------


def test_a_healthy_outbox_has_no_fault(path: Path, examined: Callable[..., Examined]) -> None:
    """Where nothing is wrong it ends with 0, and every check says what it saw."""
    said = examined()
    assert said.code == 0
    assert {name for name, check in said.checks.items() if check["verdict"] == "fault"} == set()
    assert list(said.checks) == [
        "outbox", "integrity", "books", "engine", "set aside", "copy", "worker", "permissions",
        "file system", "free space", "other outboxes", "clock", "settings", "events API",
        "accounts API",
    ]  # fmt: skip
    assert said.of("books")[1].startswith("300 accepted, 300 pending")
    assert said.of("worker") == (
        "warning",
        "not running nothing is delivered until one is started: meter-lib worker",
    )
    assert str(path) in said.of("outbox")[1]


def test_people_get_a_table_and_what_to_do(
    path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """One line a check; below, a sentence for each that needs attention."""
    del path
    code, out, _ = run("doctor")
    table, *advice = out.split("\n\n")
    assert (code, table.splitlines()[0].split()) == (0, ["check", "verdict", "found"])
    assert len(table.splitlines()) == 16
    assert any(sentence.startswith("worker: nothing is delivered") for sentence in advice)


def test_nothing_is_sent_and_nothing_is_changed(
    path: Path,
    examined: Callable[..., Examined],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The services are asked for a page, without a token, and the files stay as they are."""
    monkeypatch.setenv("METER_STREAM_TOKEN", "canary")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert examined().code == 0
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert {name: after[name] for name in before} == before
    assert Answers.asked == [("GET", ""), ("GET", "")]


# -- the outbox -------------------------------------------------------------------------


def test_damage_is_a_fault_and_can_be_salvaged(
    path: Path,
    examined: Callable[..., Examined],
    run: Callable[..., tuple[int, str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The doctor names the damage and the command; that mends it, and status tells of the file."""
    damage(path)
    said = examined()
    assert (said.code, said.checks["integrity"]["verdict"]) == (1, "fault")
    assert "doctor --salvage" in said.checks["integrity"]["remedy"]
    assert set_aside_files(str(path)) == []
    said = examined("--salvage")
    (aside,) = set_aside_files(str(path))
    assert (said.code, said.of("integrity")[0]) == (0, "ok")
    assert said.of("set aside")[0] == "warning"
    assert aside in said.of("set aside")[1]
    assert aside in caplog.text
    _, out, _ = run("status")
    assert aside in out
    _, out, _ = run("status", "--json")
    assert json.loads(out)["set_aside"] == [aside]


def test_a_whole_outbox_is_not_set_aside(
    path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Asking for a salvage that is not needed changes nothing."""
    code, _, err = run("doctor", "--salvage")
    assert (code, set_aside_files(str(path))) == (0, [])
    assert "nothing to salvage" in err


def test_a_file_that_cannot_be_opened_is_a_fault(
    path: Path, examined: Callable[..., Examined]
) -> None:
    """The other checks are made all the same."""
    path.write_bytes(b"no database" * 1000)
    said = examined()
    assert (said.code, said.of("outbox")[0]) == (1, "fault")
    assert "doctor --salvage" in said.of("outbox")[1]
    assert said.of("events API")[0] == "ok"


def test_a_missing_outbox_is_said_and_not_made(
    path: Path, tmp_path: Path, examined: Callable[..., Examined]
) -> None:
    """It ends with 1, and no file is made."""
    del path
    said = examined("--outbox", str(tmp_path / "none" / "outbox.db"))
    assert (said.code, said.of("outbox")[0]) == (1, "fault")
    assert not (tmp_path / "none").exists()


def test_counts_that_do_not_add_up_are_a_fault(
    path: Path, examined: Callable[..., Examined]
) -> None:
    """An event that is in no place is found, and a salvage balances the books."""
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM events WHERE seq = 7")
    connection.close()
    said = examined()
    assert (said.code, said.of("books")[0]) == (1, "fault")
    said = examined("--salvage")
    assert (said.code, said.of("books")[0]) == (0, "ok")
    assert said.of("books")[1].startswith("300 accepted, 299 pending, 0 dead, 0 delivered, 1 rem")


def _inspection(**differs: Any) -> Inspection:
    found: dict[str, Any] = {
        "engine": "SQLite 3.46.1",
        "method": "integrity_check",
        "is_complete": True,
        "problems": (),
        "accepted": 5,
        "pending": 1,
        "dead": 1,
        "delivered": 2,
        "removed": 1,
    }
    return Inspection(**{**found, **differs})


def test_what_there_was_no_time_for_is_a_warning() -> None:
    """A look that was cut short claims nothing."""
    inspection = _inspection(is_complete=False, pending=0)
    assert check_integrity(inspection).verdict == "warning"
    assert check_books(inspection).verdict == "ok"
    assert "not counted" in check_books(inspection).found


def test_a_look_through_the_file_ends_in_time(path: Path) -> None:
    """Without any time it ends at once, and says that it did not see all."""
    fill(path, 20_000)
    outbox = SqliteOutbox(str(path), max_bytes=64 * MIB, read_only=True)
    assert not outbox.inspect(seconds=0).is_complete
    assert outbox.inspect(seconds=60).is_complete
    outbox.close()


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("3.6.23", "ok"),
        ("3.7.0", "warning"),
        ("3.34.1", "warning"),
        ("3.44.5", "warning"),
        ("3.44.6", "ok"),
        ("3.45.0", "warning"),
        ("3.50.6", "warning"),
        ("3.50.7", "ok"),
        ("3.51.2", "warning"),
        ("3.51.3", "ok"),
        ("3.52.0", "ok"),
    ],
)
def test_versions_with_the_known_defect_are_named(version: str, verdict: str) -> None:
    """A SQLite that can lose a commit is a warning, with the reason why it does not here."""
    assert check_engine(f"SQLite {version}").verdict == verdict


def test_events_in_another_place_are_found(
    path: Path, tmp_path: Path, examined: Callable[..., Examined]
) -> None:
    """Where a program records into an outbox that no worker delivers from, that is a fault."""
    del path
    other = tmp_path / "state" / "meter-lib" / "outbox.db"
    fill(other, 3)
    said = examined()
    assert (said.code, said.of("other outboxes")[0]) == (1, "fault")
    assert f"{other} (3 pending)" in said.of("other outboxes")[1]
    outbox = SqliteOutbox(str(other), max_bytes=64 * MIB)
    assert outbox.try_hold()
    assert examined().of("other outboxes")[0] == "ok"
    outbox.close()


def test_a_folder_in_another_place_is_no_outbox(
    path: Path, tmp_path: Path, examined: Callable[..., Examined]
) -> None:
    """What is at a default place that nobody named is no fault of the settings."""
    del path
    (tmp_path / "state" / "meter-lib" / "outbox.db").mkdir(parents=True)
    assert examined().of("other outboxes")[0] == "ok"


def test_a_running_worker_is_named(path: Path, examined: Callable[..., Examined]) -> None:
    """Whoever holds the outbox is named by its process."""
    outbox = SqliteOutbox(str(path), max_bytes=64 * MIB)
    assert outbox.try_hold()
    assert examined().of("worker") == ("ok", f"running, process {os.getpid()} ")
    outbox.close()


# -- files, disk, clock -----------------------------------------------------------------


def test_files_that_others_may_read_are_named(
    path: Path, examined: Callable[..., Examined]
) -> None:
    """Too many rights are a warning, with the command that takes them away."""
    path.chmod(0o644)
    path.parent.chmod(0o755)
    verdict, text = examined().of("permissions")
    assert verdict == "warning"
    assert f"chmod 0700 {path.parent}; chmod 0600 {path}" in text
    path.parent.chmod(0o700)
    for file in path.parent.iterdir():
        file.chmod(0o600)
    assert examined().of("permissions")[0] == "ok"


def test_a_shared_folder_is_no_fault(path: Path, examined: Callable[..., Examined]) -> None:
    """In a set-group-id folder the group may read and write, others may not."""
    path.parent.chmod(0o2770)
    for file in path.parent.iterdir():
        file.chmod(0o660)
    assert examined().of("permissions")[0] == "ok"
    path.parent.chmod(0o2775)
    assert examined().of("permissions")[0] == "warning"


def test_files_that_this_user_may_not_use_are_a_fault(path: Path, services: str) -> None:
    """Whoever may not read and write is told who may."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    for folder in path.parents:
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    program = (
        "import os; from meter_worker.doctor.file_checks import check_permissions;"
        f"os.setuid(65534); print(check_permissions({str(path)!r}))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "'fault'" in told.stdout
    assert "root" in told.stdout
    del services


def test_a_disk_that_is_nearly_full_is_named() -> None:
    """A disk that cannot hold what the limit allows is a warning, one without room a fault."""
    assert check_space(2000 * MIB, MIB, 1024 * MIB).verdict == "ok"
    assert check_space(500 * MIB, MIB, 1024 * MIB).verdict == "warning"
    assert check_space(MIB, MIB, 1024 * MIB).verdict == "fault"


@pytest.mark.parametrize(
    ("now", "synchronised", "verdict"),
    [
        (0, None, "warning"),
        (1_700_000_000_000, True, "warning"),  # 2023
        (1_790_000_000_000, True, "ok"),
        (1_790_000_000_000, None, "ok"),
        (1_790_000_000_000, False, "warning"),
        (9_999_999_999_999, True, "warning"),
    ],
)
def test_a_clock_that_cannot_be_right_is_a_warning(
    now: int, synchronised: bool | None, verdict: str
) -> None:
    """A clock in another time, or that nothing keeps right, is a warning and no fault."""
    assert check_clock(now, synchronised=synchronised).verdict == verdict


def _mounts(tmp_path: Path, kind: str, point: Path) -> str:
    mounts = tmp_path / "mountinfo"
    escaped = str(point).replace(" ", "\\040")
    mounts.write_text(
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"36 21 0:44 / {escaped} rw,relatime shared:2 - {kind} server:/export rw\n"
        "37 21 0:45 / /elsewhere rw - tmpfs tmpfs rw\n"
    )
    return str(mounts)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_refused_unless_allowed(
    path: Path,
    tmp_path: Path,
    examined: Callable[..., Examined],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """The doctor calls it a fault, the library refuses it, and one setting allows it."""
    monkeypatch.setattr(file_systems, "_MOUNTS", _mounts(tmp_path, kind, path.parent))
    said = examined()
    assert (said.code, said.of("file system")[0]) == (1, "fault")
    with pytest.raises(OutboxUnavailable, match=f"network file system .{kind}"):
        MeterClient(path)
    assert post_meter_usage("t", "d", "m", 1) is None
    monkeypatch.setenv("METER_ALLOW_NETWORK_FS", "true")
    assert post_meter_usage("t", "d", "m", 1) is not None
    assert examined().of("file system")[0] == "warning"


def test_the_nearest_mount_point_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is below a mount point is on it, blanks in its name or not."""
    folder = tmp_path / "a folder"
    monkeypatch.setattr(file_systems, "_MOUNTS", _mounts(tmp_path, "nfs", folder))
    assert file_systems.file_system_type(str(folder / "x" / "outbox.db")) == "nfs"
    assert file_systems.file_system_type(f"{folder}s/outbox.db") == "ext4"
    monkeypatch.setattr(file_systems, "_MOUNTS", str(tmp_path / "none"))
    assert file_systems.file_system_type(str(folder)) == ""


# -- settings and services --------------------------------------------------------------


def test_a_wrong_setting_is_named(
    path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 2, as every command does."""
    del path
    monkeypatch.setenv("METER_BATCH_SIZE", "many")
    code, _, err = run("doctor")
    assert code == 2
    assert "METER_BATCH_SIZE" in err


def test_a_name_that_is_no_setting_gets_the_nearest_known_one(
    path: Path, examined: Callable[..., Examined], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a warning, with the place and without the value, which may be a secret."""
    del path
    monkeypatch.setenv("METER_STREAM_TOKENS", "s3cret")
    said = examined()
    verdict, *words = said.of("settings")
    assert (said.code, verdict) == (0, "warning")
    assert "METER_STREAM_TOKENS in the environment is not a setting" in words[0]
    assert "did you mean METER_STREAM_TOKEN?" in words[0]
    assert "s3cret" not in str(words)


def test_a_token_that_cannot_be_read_is_named(
    path: Path, examined: Callable[..., Examined], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that the settings name are looked at; the other checks are made all the same."""
    monkeypatch.setenv("METER_STREAM_TOKEN_FILE", str(path.parent / "token"))
    said = examined()
    assert (said.code, said.of("settings")[0]) == (2, "fault")
    assert "METER_STREAM_TOKEN_FILE" in said.of("settings")[1]
    assert said.of("events API")[0] == "ok"


def test_a_service_that_does_not_answer_is_a_fault(
    path: Path, examined: Callable[..., Examined]
) -> None:
    """The URL and the setting that names it are told."""
    del path
    said = examined("--stream-url", "http://127.0.0.1:1")
    assert (said.code, said.of("events API")[0]) == (1, "fault")
    assert "METER_STREAM_URL" in said.of("events API")[1]
    assert said.of("accounts API")[0] == "ok"


@pytest.mark.parametrize("when", ["expired", "not-yet-valid"])
def test_a_certificate_of_another_time_is_told_as_one_of_the_clock(
    path: Path, examined: Callable[..., Examined], when: str
) -> None:
    """Where a certificate is not valid now, the clock is named, which is the usual cause."""
    del path
    certificate = CERTIFICATES / f"{when}.pem"
    with serving(certificate) as url:
        said = examined("--stream-url", url, "--ca-bundle", str(certificate))
    verdict, text = said.of("events API")
    assert verdict == "fault"
    assert "clock" in text


def test_a_certificate_of_a_stranger_is_no_matter_of_the_clock(
    path: Path, examined: Callable[..., Examined]
) -> None:
    """An authority that is not trusted is told as that."""
    del path
    with serving(CERTIFICATES / "expired.pem") as url:
        verdict, text = examined("--stream-url", url).of("events API")
    assert (verdict, "METER_CA_BUNDLE" in text) == ("fault", True)


# -- taking over what a file holds ------------------------------------------------------


def keys_in(path: Path) -> list[str]:
    """The keys of all events in an outbox, in the order of their numbers."""
    connection = sqlite3.connect(path)
    found = [
        key for (key,) in connection.execute("SELECT idempotency_key FROM events ORDER BY seq")
    ]
    connection.close()
    return found


def test_the_events_of_another_file_are_taken_once(
    path: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Repeated, it finds nothing to do: also when what was taken has been delivered since."""
    other = tmp_path / "old disk" / "outbox.db"
    theirs = fill(other, 40, tenant="u")
    ours = keys_in(path)
    damage(other)
    before = other.read_bytes()
    code, _, err = run("doctor", "--salvage", str(other))
    assert code == 0
    taken = keys_in(path)[len(ours) :]
    assert keys_in(path)[: len(ours)] == ours
    assert 20 < len(taken) < 40
    assert set(taken) <= set(theirs)
    assert f"{len(taken)} events of {other} went over" in err
    assert other.read_bytes() == before
    outbox = SqliteOutbox(str(path), max_bytes=64 * MIB)
    outbox.settle(Settlement(delivered=outbox.due(now=NOON, limit=1000, max_bytes=2**30)), now=NOON)
    status = outbox.status()
    outbox.close()
    assert (status.accepted, status.delivered) == (300 + len(taken), 300 + len(taken))
    code, _, err = run("doctor", "--salvage", str(other))
    assert (code, keys_in(path)) == (0, [])
    assert "0 events" in err


def test_a_copy_of_the_outbox_brings_nothing_back(
    path: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """What was delivered since the copy was made is not taken for new."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    outbox = SqliteOutbox(str(path), max_bytes=64 * MIB)
    outbox.settle(Settlement(delivered=outbox.due(now=NOON, limit=100, max_bytes=2**30)), now=NOON)
    outbox.close()
    code, _, err = run("doctor", "--salvage", str(copy))
    assert code == 0
    assert "0 events" in err
    assert len(keys_in(path)) == 200


def test_a_file_that_went_over_already_is_refused(
    path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """What was set aside has been salvaged at once, and the outbox itself is no other file."""
    damage(path)
    run("doctor", "--salvage")
    (aside,) = set_aside_files(str(path))
    code, _, err = run("doctor", "--salvage", aside)
    assert (code, "nothing is left to do" in err) == (1, True)
    code, _, err = run("doctor", "--salvage", str(path))
    assert (code, "the outbox itself" in err) == (1, True)


def test_a_dead_letter_of_another_file_stays_one(
    path: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """It comes with its reason, and the counts of the outbox take it in."""
    from meter_lib.outbox import Burial  # noqa: PLC0415

    other = tmp_path / "other.db"
    fill(other, 3, tenant="u")
    outbox = SqliteOutbox(str(other), max_bytes=64 * MIB)
    (first, *_) = outbox.due(now=NOON, limit=1, max_bytes=2**30)
    outbox.settle(Settlement(buried=[Burial(first, "rejected", "no")]), now=NOON)
    outbox.close()
    assert run("doctor", "--salvage", str(other))[0] == 0
    outbox = SqliteOutbox(str(path), max_bytes=64 * MIB)
    status = outbox.status()
    (letter,) = outbox.dead_letters(Selector())
    outbox.close()
    assert (letter.tenant_id, letter.reason, letter.detail) == ("u", "rejected", "no")
    assert (status.accepted, status.pending, status.dead) == (303, 302, 1)


def test_a_file_without_salvage_is_a_slip(
    path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """An argument that would have no effect is refused."""
    assert run("doctor", str(path))[0] == 2
    assert run("doctor", "--salvage", str(path.parent / "none"))[0] == 2
