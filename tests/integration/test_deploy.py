"""The recipes in deploy/, as far as they can be tried where neither Docker nor OpenRC runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from meter_lib.settings import SETTINGS
from meter_worker.cli import main
from meter_worker.service.unit import ACCOUNT, FOLDER_MODE, STATE_FOLDER
from tests.integration.workers import Child, eventually, post, status

if TYPE_CHECKING:
    from meter_worker.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("path", "sandbox")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
VARIABLES = {setting.variable for setting in SETTINGS} | {"METER_CONFIG"}


def instructions() -> dict[str, list[str]]:
    """Return the instructions of the Dockerfile, in their order, comments left out."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest.strip())
    return found


def parse(arguments: list[str]) -> None:
    """Let the command line take these arguments, and run nothing."""
    name, *rest = arguments
    command = main.commands[name]
    command.make_context(name, rest, parent=click.Context(main))


def test_the_container_runs_the_worker_as_a_user_of_its_own() -> None:
    """It gets the signals itself, owns its volume, and is no root."""
    found = instructions()
    assert found["ENTRYPOINT"] == ['["meter-lib"]']
    arguments = json.loads(found["CMD"][0])
    assert arguments[0] == "worker"
    parse(arguments)
    user, _, group = found["USER"][0].partition(":")
    account, _ = found["RUN"]
    assert (user, group) == ("4711", "4711")
    assert f"--uid {user} --gid {group}" in account
    assert found["VOLUME"] == [STATE_FOLDER]
    assert f"-m {FOLDER_MODE:o} {STATE_FOLDER}" in account
    assert found["STOPSIGNAL"] == ["SIGTERM"]
    assert list(found).index("USER") > list(found).index("RUN")
    variables = dict(word.split("=") for word in shlex.split(found["ENV"][0]))
    assert {name for name in variables if name.startswith("METER_")} <= VARIABLES
    assert variables["METER_OUTBOX"] == f"{STATE_FOLDER}/outbox.db"
    assert "meter-lib[metrics]" in found["RUN"][1]


def test_the_container_is_unhealthy_when_nobody_answers(tmp_path: Path) -> None:
    """Its health check is run as it stands, against a worker, and after its end."""
    found = instructions()
    check = found["HEALTHCHECK"][0]
    port = json.loads(found["CMD"][0])[2]
    assert found["EXPOSE"] == [port]
    assert f"127.0.0.1:{port}/healthz" in check
    worker = Child(tmp_path, sys.executable, "-m", "meter_worker", "worker", "--metrics-port", "0")
    try:
        worker.says("metrics at ")
        there = re.findall(r"metrics at http://127.0.0.1:(\d+)/", worker.stderr)[0]
        command = json.loads(check[check.index("[") :].replace(f":{port}/", f":{there}/"))
        assert command[0] == "python"

        def healthy() -> bool:
            ran = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False)
            return ran.returncode == 0

        eventually(healthy)
        assert worker.ends(signal.SIGTERM) == 0
        assert not healthy()
    finally:
        worker.process.kill()
        worker.process.wait()


def test_what_alerts_and_dashboard_ask_for_is_told_by_a_worker(tmp_path: Path) -> None:
    """Each series that they name is in a scrape; a slip would be an alert that never fires."""
    alerts = (DEPLOY / "prometheus-alerts.yml").read_text("utf-8")
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    asked = re.findall(r"^ +expr: (.+)$", alerts, re.MULTILINE)
    asked += [target["expr"] for panel in panels for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"\bmeter_\w+", expression)}
    worker = Child(tmp_path, sys.executable, "-m", "meter_worker", "worker", "--metrics-port", "0")
    try:
        worker.says("delivering from")
        url = re.findall(r"metrics at (\S+) ?,|metrics at (\S+),", worker.stderr)[0]
        with urllib.request.urlopen("".join(url), timeout=10) as answer:  # noqa: S310  # our own
            text = answer.read().decode()
    finally:
        worker.process.kill()
        worker.process.wait()
    told = set(re.findall(r"^(meter_\w+)", text, re.MULTILINE))
    assert (named - told, len(named) > 5) == (set(), True)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_each_alert_has_a_page() -> None:
    """Whoever is woken by one finds what to do."""
    alerts = (DEPLOY / "prometheus-alerts.yml").read_text("utf-8")
    names = re.findall(r"^ +- alert: (\w+)$", alerts, re.MULTILINE)
    guide = (ROOT / "docs" / "operations" / "README.md").read_text("utf-8")
    assert (names != [], [name for name in names if f"`{name}`" not in guide]) == (True, [])


# What OpenRC has for its scripts, told as it is called.
OPENRC = """
checkpath() { echo checkpath "$@"; }
ebegin() { echo "$@"; }
eend() { return "$1"; }
use() { :; }
after() { :; }
RC_SVCNAME=meter-lib
"""


def openrc(tmp_path: Path, script: str) -> str:
    """Run the OpenRC script and then this, with a supervisor that only says what it was told."""
    supervisor = tmp_path / "supervise-daemon"
    supervisor.write_text('#!/bin/sh\necho supervise-daemon "$@"\n')
    supervisor.chmod(0o755)
    ran = subprocess.run(
        ["/bin/sh", "-euc", f"{OPENRC}\n. {DEPLOY}/meter-lib.openrc\n{script}"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout


def test_openrc_starts_the_worker_as_the_unit_of_systemd_does(tmp_path: Path) -> None:
    """Same user, same folder with the same mode, the same command."""
    said = openrc(
        tmp_path,
        'depend; start_pre; echo "$command|$command_args|$command_user|$umask|$supervisor|$retry"',
    )
    folder, log, settings = said.splitlines()
    assert folder == (
        f"checkpath --directory --owner {ACCOUNT}:{ACCOUNT} --mode {FOLDER_MODE:o} {STATE_FOLDER}"
    )
    assert log.endswith("/var/log/meter-lib.log")
    command, arguments, user, umask, supervisor, retry = settings.split("|")
    assert (command, user, umask) == (
        "/opt/meter-lib/bin/meter-lib",
        f"{ACCOUNT}:{ACCOUNT}",
        "0007",
    )
    assert (supervisor, retry.split("/")[:2]) == ("supervise-daemon", ["SIGTERM", "15"])
    parse(arguments.split())


@pytest.mark.parametrize(("command", "number"), [("reload", "HUP"), ("flush", "USR1")])
def test_openrc_hands_on_the_signals(tmp_path: Path, command: str, number: str) -> None:
    """`rc-service meter-lib reload` and `flush` are what SIGHUP and SIGUSR1 are."""
    assert f"supervise-daemon meter-lib --signal {number}" in openrc(tmp_path, command)


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox"])
def test_openrc_reads_the_script_in_any_shell(shell: str) -> None:
    """It is plain sh."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    command = [found, "sh"] if shell == "busybox" else [found]
    subprocess.run([*command, "-n", str(DEPLOY / "meter-lib.openrc")], check=True, timeout=30)


def test_the_line_of_cron_delivers_also_where_its_runs_meet(
    tmp_path: Path, path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run as it stands, three at once: each event arrives once, and each run ends well."""
    lines = (DEPLOY / "meter-lib.cron").read_text("utf-8").splitlines()
    [entry] = [line for line in lines if line.startswith("*")]
    *times, user, command = entry.split(None, 6)
    given = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    assert (times, user) == (["*/5", "*", "*", "*", "*"], ACCOUNT)
    assert {name for name in given if name.startswith("METER_")} <= VARIABLES
    assert float(re.findall(r"--timeout (\d+)", command)[0]) < 5 * 60
    logger = tmp_path / "logger"
    logger.write_text(f'#!/bin/sh\nexec cat >> "{tmp_path}/log.$$"\n')
    logger.chmod(0o755)
    monkeypatch.setenv("METER_LOG_LEVEL", given["METER_LOG_LEVEL"])
    monkeypatch.setenv("PATH", f"{tmp_path}:{BIN}:/usr/bin:/bin")
    post(path, 200)
    sandbox.fault("slow", seconds=0.2)
    running = [subprocess.Popen([given["SHELL"], "-c", command]) for _ in range(3)]
    assert [run.wait(timeout=30) for run in running] == [0, 0, 0]
    said = [log.read_text().splitlines()[-1] for log in tmp_path.glob("log.*")]
    assert said == ["nothing is left pending"] * 3
    assert (status(path).delivered, sandbox.count, sandbox.duplicates) == (200, 200, 0)


def test_each_recipe_is_told_of_in_the_docs() -> None:
    """Nobody finds a file that no page names."""
    text = (ROOT / "docs" / "worker.md").read_text("utf-8")
    assert [file.name for file in DEPLOY.iterdir() if f"deploy/{file.name}" not in text] == []


def test_each_setting_that_the_recipes_name_is_one() -> None:
    """A slip in a recipe would have no effect, on every device."""
    named = {
        name
        for file in DEPLOY.iterdir()
        for name in re.findall(r"\bMETER_[A-Z_]+", file.read_text("utf-8"))
    }
    assert (named - VARIABLES, bool(named)) == (set(), True)
