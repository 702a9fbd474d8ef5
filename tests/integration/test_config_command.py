"""`meter-lib config`: what is set, and where, without a secret in it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.settings import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = (sys.executable, "-m", "meter_worker", "config")


def config(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def rows(*arguments: str) -> dict[str, dict[str, Any]]:
    """Return what it prints as JSON, by the names of the settings."""
    ran = config("--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    return {row.pop("name"): row for row in json.loads(ran.stdout)}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a settings file that says nothing yet."""
    named = tmp_path / "meter-lib.env"
    named.write_text("")
    monkeypatch.setenv("METER_CONFIG", str(named))
    return named


def test_each_setting_is_shown_with_where_it_comes_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option wins over the environment, that over the file, and that over the default."""
    file.write_text("METER_TOPIC=file\nMETER_BATCH_SIZE=7\nMETER_READ_TIMEOUT=1.5\n")
    monkeypatch.setenv("METER_TOPIC", "environment")
    monkeypatch.setenv("METER_BATCH_SIZE", "8")
    shown = rows("--topic", "option")
    assert set(shown) == {setting.variable for setting in SETTINGS}
    assert [
        shown[name]
        for name in ("METER_TOPIC", "METER_BATCH_SIZE", "METER_READ_TIMEOUT", "METER_RATE")
    ] == [
        {"value": "option", "origin": "option", "file": None},
        {"value": 8, "origin": "environment", "file": None},
        {"value": 1.5, "origin": "file", "file": str(file)},
        {"value": None, "origin": "default", "file": None},
    ]


def test_people_see_a_line_for_each_setting(file: Path) -> None:
    """Name, value and origin, in columns."""
    file.write_text("METER_TOPIC=other\nMETER_ALLOW_NETWORK_FS=true\n")
    ran = config()
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert (ran.returncode, len(lines)) == (0, len(SETTINGS) + 1)
    assert ["METER_TOPIC", "other", str(file)] in lines
    assert ["METER_ALLOW_NETWORK_FS", "true", str(file)] in lines
    assert ["METER_READ_TIMEOUT", "130", "default"] in lines
    assert ["METER_RATE", "-", "default"] in lines


def test_no_secret_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what the environment holds nor what a file does; the file need not be readable."""
    monkeypatch.setenv("METER_API_KEY", "s3cret-api")
    missing = str(tmp_path / "token")
    monkeypatch.setenv("METER_STREAM_TOKEN_FILE", missing)
    shown = rows()
    assert (shown["METER_API_KEY"], shown["METER_STREAM_TOKEN"]) == (
        {"value": "***", "origin": "environment", "file": None},
        {"value": "***", "origin": "file", "file": missing},
    )
    assert "s3cret" not in config().stdout


@pytest.mark.parametrize("place", ["environment", "file"])
def test_an_unknown_name_gets_the_nearest_known_one(
    place: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stands, it is warned about and has no effect."""
    if place == "file":
        file.write_text("METER_BATCHSIZE=7\n")
    else:
        monkeypatch.setenv("METER_BATCHSIZE", "7")
    ran = config()
    assert ran.returncode == 0
    assert "METER_BATCHSIZE" in ran.stderr
    assert "did you mean METER_BATCH_SIZE?" in ran.stderr


def test_a_bad_value_is_refused_by_name(file: Path) -> None:
    """As the worker would refuse it at its start."""
    file.write_text("METER_BATCH_SIZE=many\n")
    ran = config()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "METER_BATCH_SIZE" in ran.stderr
