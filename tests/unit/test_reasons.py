"""The reasons of dead letters: each that the code gives is explained, in the docs as well."""

from __future__ import annotations

import re
from pathlib import Path

import meter_lib
import meter_worker
from meter_worker.reason_page import page
from meter_worker.reasons import REASONS, hint_for, reason_of

ROOT = Path(__file__).parents[2]
SOURCES = [
    path.read_text(encoding="utf-8")
    for package in (meter_lib, meter_worker)
    for path in Path(str(package.__file__)).parent.rglob("*.py")
]


def test_each_reason_that_the_code_gives_is_explained() -> None:
    """No dead letter has a reason that nobody has written a hint for, and no hint is left over."""
    given = {
        slug
        for text in SOURCES
        for pattern in (
            r"\b(?:Refused|Rejected)\(\s*\"([a-z_]+)\"",
            r"\bBurial\(\s*\w+,\s*\"([a-z_]+)\"",
            r"\breason = '([a-z_]+)'",
        )
        for slug in re.findall(pattern, text)
    }
    assert given == {reason.slug for reason in REASONS}


def test_each_reason_is_a_slug_with_whole_sentences() -> None:
    """What is shown can be typed, and read aloud."""
    for reason in REASONS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.slug)
        assert all(text[0].isupper() and text.endswith(".") for text in reason[1:3])
        assert hint_for(reason.slug) == f"{reason.meaning} {reason.hint}"


def test_a_reason_of_another_version_is_said_to_be_unknown() -> None:
    """Whoever meets one is told so, and the worst is believed of it."""
    assert "does not know" in hint_for("of_a_later_version")
    assert not reason_of("of_a_later_version").is_refusal


def test_the_page_of_reasons_is_that_of_the_code() -> None:
    """What the docs say of dead letters is what `show` says."""
    written = (ROOT / "docs" / "dead-letters.md").read_text(encoding="utf-8")
    assert written == page(), "stale: run make docs"
