"""The systemd unit, and what installs it, tried in a namespace: this machine stays as it is."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meter_worker.service import Unit

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = (sys.executable, "-m", "meter_worker", "service")
# A copy of /etc and an empty /var/lib of its own, seen by one process and its children alone.
ELSEWHERE = """
set -e
mkdir "$1/etc" "$1/lib"
cp -a /etc/. "$1/etc"
rm -rf "$1/etc/systemd/system"
mkdir -p "$1/etc/systemd/system"
mount --bind "$1/etc" /etc
mount --bind "$1/lib" /var/lib
exec "$2" -c "$3"
"""
INSTALL_TWICE = """
import grp, os, pwd, stat
from meter_worker.service import Unit, steps
unit = Unit("/etc/meter-lib/api-key", python="/usr/bin/python3")
for step in steps(unit):
    step.do()
found = os.stat("/var/lib/meter-lib")
print(oct(stat.S_IMODE(found.st_mode)))
print(found.st_uid == pwd.getpwnam("meter-lib").pw_uid)
print(found.st_gid == grp.getgrnam("meter-lib").gr_gid == pwd.getpwnam("meter-lib").pw_gid)
print(pwd.getpwnam("meter-lib").pw_shell)
print(open("/etc/systemd/system/meter-lib.service").read() == unit.text())
print(oct(stat.S_IMODE(os.stat("/etc/systemd/system/meter-lib.service").st_mode)))
print([step.words for step in steps(unit)])
os.chmod("/var/lib/meter-lib", 0o755)
print([step.words for step in steps(unit)])
"""


def service(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def verified(text: str, folder: Path) -> str:
    """Return what systemd has to say against a unit."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    unit = folder / "meter-lib.service"
    unit.write_text(text)
    ran = subprocess.run(
        [analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    # It speaks of other units of the machine as well.
    return "".join(line for line in ran.stderr.splitlines() if "meter-lib" in line)


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """It understands every line, with credentials and without."""
    plain = service("print")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert verified(plain.stdout, tmp_path) == ""
    with_key = service("print", "--api-key-file", "/etc/meter lib/50%$key")
    assert verified(with_key.stdout, tmp_path) == ""
    assert verified(plain.stdout.replace("WatchdogSec", "WatchSec"), tmp_path) != ""


def test_the_unit_says_what_applications_and_operators_rely_on() -> None:
    """Readiness, reload, a user and a group that stay the same, a folder that the group shares."""
    lines = service("print").stdout.splitlines()
    expected = """
    Type=notify
    ExecReload=/bin/kill -HUP $MAINPID
    Restart=always
    WatchdogSec=5min
    User=meter-lib
    Group=meter-lib
    StateDirectory=meter-lib
    StateDirectoryMode=2770
    ProtectSystem=strict
    NoNewPrivileges=yes
    SystemCallFilter=@system-service
    """
    assert [
        line for line in expected.split("\n") if line.strip() and line.strip() not in lines
    ] == []
    assert not any("DynamicUser=" in line for line in lines)
    assert not any(line.startswith(("LoadCredential", "Environment")) for line in lines)


def test_secrets_are_handed_over_as_credentials() -> None:
    """The worker reads what systemd read as root; a file that was not named is not asked for."""
    lines = service("print", "--api-key-file", "/etc/meter-lib/key").stdout.splitlines()
    assert [line for line in lines if line.startswith(("LoadCredential", "Environment"))] == [
        "LoadCredential=api-key:/etc/meter-lib/key",
        "Environment=METER_API_KEY_FILE=%d/api-key",
    ]


def test_a_path_means_nothing_to_systemd_but_itself() -> None:
    """Blanks, quotes, percent and dollar signs are written so that they stay what they are."""
    unit = Unit('/k "1" %n', python="/opt/my $venv/python")
    assert 'ExecStart="/opt/my $$venv/python" -m meter_worker worker\n' in unit.text()
    assert 'LoadCredential="api-key:/k \\"1\\" %%n"\n' in unit.text()


def test_a_dry_run_changes_nothing() -> None:
    """It says what would be done."""
    ran = service("install", "--dry-run")
    assert ran.returncode == 0, ran.stderr
    if "meter-lib" not in {entry.pw_name for entry in pwd.getpwall()}:
        assert "groupadd --system meter-lib\nuseradd --system --gid meter-lib" in ran.stdout
        assert "-m 2770 /var/lib/meter-lib\n" in ran.stdout
    assert "systemctl enable --now meter-lib" in ran.stdout.splitlines()[-1]
    assert not os.path.exists("/etc/systemd/system/meter-lib.service.new")


def test_only_root_installs() -> None:
    """Anybody else is told so in a sentence, with 1, and may see what would be done."""
    nobody = (
        "import os, sys\n"
        "from meter_worker.cli import main\n"
        "if os.geteuid() == 0:\n"
        "    os.seteuid(65534)\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", nobody, "service", "install"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "only root can install a service" in ran.stderr
    dry = subprocess.run(
        [*command, "--dry-run"], capture_output=True, text=True, timeout=30, check=False
    )
    assert dry.returncode == 0, dry.stderr


def test_an_installation_is_whole_and_done_once(tmp_path: Path) -> None:
    """User, group, folder and unit are made; a second run finds nothing to do, or what changed."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0 or not shutil.which("useradd"):
        pytest.skip("it takes root, unshare and useradd")
    if subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces can be made here")
    ran = subprocess.run(
        [
            unshare,
            "--mount",
            "/bin/sh",
            "-c",
            ELSEWHERE,
            "sh",
            tmp_path,
            sys.executable,
            INSTALL_TWICE,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "0o2770",
        "True",
        "True",
        "/usr/sbin/nologin",
        "True",
        "0o644",
        "[]",
        "['install -d -o meter-lib -g meter-lib -m 2770 /var/lib/meter-lib']",
    ]
