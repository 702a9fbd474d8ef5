"""What docs/ shows is what happens: each command is run, each output compared."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meter_worker.cli.command_page import page
from tests.docs.pages import (
    DOCS,
    ROOT,
    form,
    pages,
    run,
    shortened,
    shown_commands,
    what_is_missing,
)

if TYPE_CHECKING:
    from pathlib import Path

ALL = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(DOCS)))
def test_each_page_does_what_it_shows(path: Path, tmp_path: Path) -> None:
    """A command of the docs works as it stands, and prints what stands below it."""
    text = path.read_text("utf-8")
    if missing := what_is_missing(text):
        pytest.skip(missing)
    if path.name == "a-night.md":
        text = shortened(text)
    ran = run(text, tmp_path)
    assert ran.exit_code == 0, ran.rest
    commands = shown_commands(text)
    assert len(ran.outputs) == len(commands)
    for command, output in zip(commands, ran.outputs, strict=True):
        assert form(output) == form(command.output), f"stale after: $ {command.line}"


@pytest.mark.parametrize(
    "block",
    [
        block
        for path in ALL
        for block in re.findall(
            r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
    ],
)
def test_each_python_example_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the docs show of the API works as it stands."""
    monkeypatch.setenv("METER_OUTBOX", str(tmp_path / "outbox.db"))
    ran = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_change_of_words_is_noticed_and_a_change_of_time_is_not() -> None:
    """Forms hide what differs from run to run, and nothing else."""
    before = (
        "2026-11-28T08:05:02.816Z delivered 3 events of process 12, the oldest for 3 s, 1.0 MiB"
    )
    later = (
        "2027-01-02T03:04:05.000Z delivered 3 events of process 9, the oldest for 2 d 3 h, 12 KiB"
    )
    assert form(before) == form(later)
    assert form(before) != form(before.replace("3 events", "4 events"))
    assert form(before) != form(before.replace("oldest", "newest"))


def test_the_commands_are_those_of_the_code() -> None:
    """The reference knows each command and each option."""
    assert (DOCS / "commands.md").read_text("utf-8") == page(), "stale: run make docs"


def slug(heading: str) -> str:
    """Return the anchor that a heading has."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize(
    "path",
    [*ALL, ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_each_link_leads_somewhere(path: Path) -> None:
    """A page that was moved leaves no link behind, nor does a heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path if not file else path.parent / file
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_index_names_each_page() -> None:
    """Whoever looks for something begins there."""
    named = {
        (index.parent / target).resolve()
        for index in (DOCS / "README.md", DOCS / "operations" / "README.md")
        for target in re.findall(r"\]\(([^)#\s]+)\)", index.read_text("utf-8"))
    }
    assert [path for path in ALL if path not in named and path.name != "README.md"] == []


def test_each_test_that_the_contract_names_is_there() -> None:
    """Whoever doubts a promise finds the tests that prove it, by name."""
    text = (DOCS / "delivery-contract.md").read_text("utf-8")
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", text)
    files = {file for file, _ in named}
    missing = [
        f"{file}::{test}"
        for file, test in named
        if f"def {test}(" not in (ROOT / file).read_text("utf-8")
    ]
    assert missing == []
    for number in range(1, 9):
        assert any(f"/test_p{number}_" in file for file in files), f"nothing proves P{number}"
