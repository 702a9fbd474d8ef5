"""`python -m tests.docs [--all] [PAGE]...`: run pages of docs/ and write anew what has changed.

With --all each output is written, also where only times and the like differ.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.docs.pages import pages, run, written_anew


def main() -> int:
    """Write each page anew; return 1 where one could not be run to its end."""
    names = sys.argv[1:]
    everything = "--all" in names
    for path in [Path(name).resolve() for name in names if name != "--all"] or pages():
        text = path.read_text("utf-8")
        with tempfile.TemporaryDirectory() as folder:
            ran = run(text, Path(folder))
        if ran.exit_code:
            sys.stderr.write(f"{path}: ended with {ran.exit_code}: {ran.rest}\n")
            return 1
        path.write_text(written_anew(text, ran.outputs, everything=everything), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
