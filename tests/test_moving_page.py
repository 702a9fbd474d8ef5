"""What docs/moving.md shows is what the commands print.

`python tests/test_moving_page.py` writes the transcript anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "moving.md"
FOLDER = "/var/lib/meter-lib"
POST = "meter-lib post --tenant t --device d --meter page.processed.basic --usage"
COMMANDS = (
    f"{POST} 24 --idempotency-key batch-1",
    "meter-lib move --to new/outbox.db --dry-run",
    "meter-lib move --to new/outbox.db",
    f"{POST} 3",
    "export METER_OUTBOX=$PWD/new/outbox.db",
    f"{POST} 3 --idempotency-key batch-2",
    "meter-lib pending list",
)


def transcript(folder: Path) -> str:
    """Return what the commands print in that folder, in the words of the page."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("METER_")} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "METER_OUTBOX": str(folder / "outbox.db"),
        "METER_CONFIG": os.devnull,
    }
    script = "\n".join(f"echo '$ {command}'\n{command} 2>&1" for command in COMMANDS)
    ran = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown = ran.stdout.replace(str(folder.resolve()), FOLDER)
    shown = re.sub(r"\b[0-9a-f]{32}\b", "6f1c0e5d9b7a4c2e8d3f1a0b5c7e9d24", shown)
    shown = re.sub(r"\d{8}T\d{6}Z", "20261128T090000Z", shown)
    shown = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "2026-11-28 09:00:00Z", shown)
    lines = [line.rstrip() for line in shown.splitlines()]
    return "\n".join(["```console", *lines, "```"])


def with_transcript(text: str, shown: str) -> str:
    """Return the page with this transcript."""
    before, _, rest = text.partition("<!-- transcript -->\n")
    _, _, after = rest.partition("<!-- /transcript -->")
    return f"{before}<!-- transcript -->\n\n{shown}\n\n<!-- /transcript -->{after}"


def test_the_page_on_moving_shows_what_the_commands_print(tmp_path: Path) -> None:
    """Whoever moves an outbox sees what was promised."""
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_transcript(text, transcript(tmp_path)), (
        "stale: run python tests/test_moving_page.py"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        written = with_transcript(PAGE.read_text(encoding="utf-8"), transcript(Path(made)))
    PAGE.write_text(written, encoding="utf-8")
