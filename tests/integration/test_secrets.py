"""No key, token or password is ever written anywhere: every byte is looked through for them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import InvalidSetting, MeterClient, Settings
from meter_worker import BackgroundFlusher
from meter_worker.assembly import flush_loop
from meter_worker.http_link import HttpLink, LinkFailed
from tests.integration.workers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.operating import Operator

TOKEN = "canary-T0ken/of+stream=7"  # noqa: S105  # nobody's, as are those below
API_KEY = "canary-K3y.of~portal-8"
PASSWORD = "canary-Passw0rd-9"  # noqa: S105
USER = "prober"
_BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
# As they are, and as they look on their way.
CANARIES = {
    form
    for secret in (TOKEN, API_KEY, PASSWORD)
    for form in (
        secret,
        urllib.parse.quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode(),
        json.dumps(secret).replace("/", "\\/")[1:-1],
        secret.encode().hex(),
    )
} | {_BASIC}
METER = "page.processed.basic"
REFUSED_METER = "page.processed.premium"
_ECHOES = 24


class _Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the credentials that it was sent: first wrongly in many ways, then rightly."""

    protocol_version = "HTTP/1.1"
    server: EchoingBackend

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = [self.headers[name] for name in self.headers if name.endswith("uthorization")]
        said += [value for one in said for value in one.split()]
        self.server.seen.update(said)
        self.server.requests += 1
        echo = " and ".join([*said, *(f"{USER}:{PASSWORD}" for one in said if _BASIC in one)])
        if self.server.requests <= _ECHOES:
            self._answer_wrongly(self.server.requests, echo)
        elif self.command == "GET":
            self._send(200, json.dumps({"id": "customer-1"}))
        else:
            self._judge(json.loads(body), echo)

    def _judge(self, request: dict[str, Any], echo: str) -> None:
        records = request["records"]
        if any(one["value"]["meter_id"] == REFUSED_METER for one in records):
            message = {"error_code": 42201, "message": f"refused, {echo}"}
            self._send(422, json.dumps(message))
        else:
            offsets = [{"partition": 0, "offset": n} for n, _ in enumerate(records)]
            self._send(200, json.dumps({"offsets": offsets}))

    def _answer_wrongly(self, number: int, echo: str) -> None:
        statuses = [401, 403, 500, 503, 407, 302, 200, 429, 404, 408, 415, 502]
        status = statuses[number % len(statuses)]
        if number % 7 == 0:
            self.wfile.write(f"{echo}\r\n\r\n{echo}".encode())
            self.close_connection = True
        elif number % 7 == 1:
            self._send(status, f"<html>{echo}</html>", kind="text/html")
        else:
            self._send(status, json.dumps({"error_code": status * 100 + 1, "message": echo}), echo)

    def _send(self, status: int, text: str, echo: str = "", kind: str = "application/json") -> None:
        self.send_response(status, echo or None)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        if echo:
            self.send_header("Location", f"http://127.0.0.1:1/{echo}")
            self.send_header("Retry-After", echo)
            self.send_header("WWW-Authenticate", echo)
            self.send_header(echo.replace(":", ""), echo)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class EchoingBackend(http.server.ThreadingHTTPServer):
    """A backend, an accounts API, and an HTTP proxy before both."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.requests = 0
        self.seen: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A worker that is killed closes its connections as it likes."""


@pytest.fixture
def backend() -> Iterator[EchoingBackend]:
    """A backend that echoes credentials."""
    server = EchoingBackend()
    yield server
    server.shutdown()
    server.server_close()


_EACH = """
import json, sys
from meter_worker.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as ended:
        assert not ended.code, (command, ended.code)
"""


class Watched:
    """Runs command lines, and keeps all that they print."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = environment
        self._count = 0

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command line; what it prints goes to files, and its arguments are looked at."""
        self._count += 1
        output = self.folder / f"printed-{self._count}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "meter_worker", *arguments],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        with contextlib.suppress(FileNotFoundError):
            command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            (self.folder / f"arguments-{self._count}.txt").write_bytes(command_line)
        return process

    def run(self, *arguments: str, ends_with: tuple[int, ...] = (0,)) -> str:
        """Run a command line to its end, and return what it printed."""
        process = self.start(*arguments)
        code = process.wait(timeout=60)
        printed = (self.folder / f"printed-{self._count}.txt").read_text()
        assert code in ends_with, printed
        assert "Traceback" not in printed
        return printed

    def run_each(self, *commands: list[str]) -> None:
        """Run command lines one after the other, in one process: each must end well."""
        self._count += 1
        output = self.folder / f"printed-{self._count}.txt"
        with output.open("wb") as file:
            subprocess.run(
                [sys.executable, "-c", _EACH, json.dumps(commands)],
                env={**os.environ, **self._environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                check=True,
                timeout=60,
            )

    def leaks(self) -> list[tuple[str, str]]:
        """Every file in which there is a secret, and which."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"outbox.db", "printed-1.txt"}
        return [
            (path.name, canary)
            for path in files
            if path.parent.name != "secrets"
            for canary in CANARIES
            if canary.encode() in path.read_bytes()
        ]


@pytest.fixture(params=["in the environment", "in files", "in the settings file"])
def watched(request: pytest.FixtureRequest, tmp_path: Path, backend: EchoingBackend) -> Watched:
    """Command lines with secrets, which come from here or there."""
    folder = tmp_path / "watched"
    secrets = folder / "secrets"
    secrets.mkdir(parents=True)
    environment = {
        "METER_OUTBOX": str(folder / "outbox.db"),
        "METER_STREAM_URL": backend.url,
        "METER_PORTAL_URL": backend.url,
        "METER_LOG_LEVEL": "DEBUG",
        "METER_BACKOFF_BASE": "0.02",
        "METER_BACKOFF_MAX": "0.05",
        "METER_CONFIG": os.devnull,
        # Both peers are behind it.
        "HTTP_PROXY": f"http://{USER}:{PASSWORD}@127.0.0.1:{backend.server_port}",
        "http_proxy": f"http://{USER}:{PASSWORD}@127.0.0.1:{backend.server_port}",
        "NO_PROXY": "",
        "no_proxy": "",
    }
    if request.param == "in the environment":
        environment |= {"METER_STREAM_TOKEN": TOKEN, "METER_API_KEY": API_KEY}
    elif request.param == "in files":
        for name, secret in (("STREAM_TOKEN", TOKEN), ("API_KEY", API_KEY)):
            (secrets / name).write_text(secret + "\n")
            environment[f"METER_{name}_FILE"] = str(secrets / name)
    else:
        (secrets / "meter.env").write_text(f"METER_STREAM_TOKEN={TOKEN}\nMETER_API_KEY={API_KEY}\n")
        environment["METER_CONFIG"] = str(secrets / "meter.env")
    return Watched(folder, environment)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _fetched(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    head = f"{answer.status} {answer.getheaders()}".encode()
    body = answer.read()
    connection.close()
    return head + body


def test_no_command_writes_a_secret(watched: Watched, backend: EchoingBackend) -> None:
    """However the peers echo them: not in the outbox, a log, a page, an answer or an argument."""
    run = watched.run
    post = ["post", "--tenant", "t", "--device", "d", "--meter", METER, "--usage"]
    watched.run_each(*([*post, str(number)] for number in range(3)))
    run(
        "post", "--tenant", "t", "--device", "d", "--meter", REFUSED_METER, "--usage", "1", "--json"
    )
    port = _free_port()
    worker = watched.start("worker", "--metrics-port", str(port))
    try:
        eventually(lambda: backend.requests > 3, seconds=30)
        for path in ("/metrics", "/healthz", "/nowhere"):
            (watched.folder / f"page{path.replace('/', '-')}").write_bytes(_fetched(port, path))
        eventually(lambda: backend.requests > _ECHOES + 4, seconds=30)
        watched.run_each(["status"], ["status", "--json"])
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    run("flush", "--timeout", "5", ends_with=(0, 1))
    for _ in range(2):  # what is delivered in between proves that the one is refused for good
        run("post", "--tenant", "t", "--device", "e", "--meter", METER, "--usage", "1")
        run("flush", "--timeout", "5", ends_with=(0, 1))
    letters = json.loads(run("dead-letters", "list", "--json"))
    # They were echoed, and what was echoed was kept, less the secrets.
    assert ["***" in letter["detail"] for letter in letters] == [True]
    key = letters[0]["idempotency_key"]
    run("dead-letters", "show", key)
    run("dead-letters", "export", "letters.jsonl", "--all")
    run("dead-letters", "replay", key)
    run("flush", "--timeout", "2", ends_with=(0, 1))
    watched.run_each(
        ["config"],
        ["config", "--json"],
        ["audit"],
        ["audit", "--json"],
        ["pending", "list"],
        ["pending", "list", "--json"],
        ["migrate", "--check"],
        ["meters", "--json"],
        ["service", "print"],
        ["status"],
        ["status", "--json"],
        ["dead-letters", "list"],
    )
    run("doctor", "--timeout", "5", ends_with=(0, 1))
    run("doctor", "--timeout", "5", "--json", ends_with=(0, 1))
    run("worker", "--nonsense", ends_with=(2,))
    assert backend.seen >= {TOKEN, API_KEY, _BASIC}
    assert watched.leaks() == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("METER_STREAM_URL", f"https://{USER}:{PASSWORD}@127.0.0.1"),
        ("METER_STREAM_URL", f"https://{USER}:{PASSWORD}@127.0.0.1:port/x?y#z"),
        ("METER_STREAM_URL", f"{USER}:{PASSWORD}@127.0.0.1"),
        ("METER_ACCOUNTS_URL", f"http://{PASSWORD}@127.0.0.1"),
        ("METER_PORTAL_URL", f"http:{USER}:{PASSWORD}@127.0.0.1"),
        ("METER_STREAM_URL", f"https://127.0.0.1/?token={PASSWORD}"),
        ("METER_OUTBOX", f"mysql://{USER}:{PASSWORD}@127.0.0.1/usage"),
        ("METER_SINK", f"kafka://{USER}:{PASSWORD}@127.0.0.1:9092/usage"),
        ("METER_STREAM_TOKEN", f"{TOKEN} with a blank"),
        ("METER_API_KEY", f"{API_KEY}\nX-Other: header"),
        ("METER_API_KEY", f"{API_KEY}\N{SNOWMAN}"),
    ],
)
def test_a_setting_that_is_refused_is_not_told(
    variable: str, value: str, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the message, the traceback or the output of a command; the setting is named."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSetting, match=variable) as refused:
        Settings.load()
    _see_no_secret("".join(traceback.format_exception(refused.value)) + repr(refused.value))
    for command in (("config",), ("worker",), ("doctor", "--json"), ("status",), ("flush",)):
        ended = operator.run(*command)
        assert ended.code in (1, 2)
        _see_no_secret(ended.stdout + ended.stderr)


@pytest.mark.parametrize(
    "line",
    [f"METER_API_KEY {API_KEY}", f"METER_API_KEYS={API_KEY}", f'METER_API_KEY="{API_KEY}', API_KEY],
)
def test_a_bad_line_of_the_settings_file_is_not_told(line: str, tmp_path: Path) -> None:
    """It is named by its number, for it may hold a secret."""
    file = tmp_path / "meter.env"
    file.write_text(f"# settings\n{line}\n")
    environment = {"METER_OUTBOX": str(tmp_path / "outbox.db"), "METER_CONFIG": str(file)}
    told = ""
    try:
        told = repr(Settings.load(environ=environment, delivers=True))
    except InvalidSetting as refused:
        told = "".join(traceback.format_exception(refused))
    _see_no_secret(told)


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://{USER}:{PASSWORD}@127.0.0.1:1",
        f"http://{USER}:{PASSWORD}@127.0.0.1:port",
        f"http://{USER}:{PASSWORD}#@127.0.0.1:1",
        f"http://{USER}:{PASSWORD}@",
        f"socks5://{USER}:{PASSWORD}@127.0.0.1:1",
        f"{USER}:{PASSWORD}@127.0.0.1:1",
        f"nonsense://{USER}:{PASSWORD}@127.0.0.1:1",
    ],
)
def test_the_password_of_a_proxy_is_not_told(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it cannot be reached or not even be understood."""
    caplog.set_level("DEBUG")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    for scheme in ("http", "https"):
        link = HttpLink(connect_timeout=2, read_timeout=2, token=TOKEN)
        with pytest.raises(LinkFailed) as failed:
            link.send("GET", f"{scheme}://127.0.0.1:9/", headers={})
        _see_no_secret(str(failed.value) + repr(failed.value) + caplog.text)


def test_no_object_shows_a_secret(tmp_path: Path, backend: EchoingBackend) -> None:
    """The `repr` and `str` of settings, clients, flushers, loops and links tell of none."""
    settings = Settings(
        outbox=tmp_path / "outbox.db",
        stream_url=backend.url,
        portal_url=backend.url,
        stream_token=TOKEN,
        api_key=API_KEY,
    )
    link = HttpLink(connect_timeout=1, read_timeout=1, token=TOKEN)
    loop = flush_loop(settings)
    with MeterClient(settings=settings) as client:
        for shown in (settings, client, loop, BackgroundFlusher(settings=settings), link):
            _see_no_secret(f"{shown!r} {shown}")


def _see_no_secret(text: str) -> None:
    assert [canary for canary in CANARIES if canary in text] == []
