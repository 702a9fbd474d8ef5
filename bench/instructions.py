"""Counts the instructions of a post and of an import: they hardly depend on the machine.

    python bench/instructions.py [--keep]

Compares with what bench/instructions.json keeps for this Python and SQLite, and exits 1 where a
count has moved beyond the tolerance; `--keep` writes what was counted, for review.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile

__all__ = ["all_kept", "compare", "counted", "versions"]

_KEPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions.json")
# Addresses and hashes differ from run to run: so much is noise.
_TOLERANCE = 0.02
_POSTS = (50, 450)
_PROGRAM = (
    "import sys; from meter_lib import MeterClient; client = MeterClient(sys.argv[1]);"
    "[client.post('t', 'd', 'page.processed.basic', 1) for _ in range(int(sys.argv[2]))]"
)


def counted() -> dict[str, int] | None:
    """Return the instructions of a lone post and of the import; None without valgrind."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return None
    with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
        # As installed: compiled once, wherever the tree is.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(folder, "compiled")
        warm_up = [sys.executable, "-c", _PROGRAM, os.path.join(folder, "0.db"), "1"]
        subprocess.run(warm_up, check=True)
        few, many = (
            _count(valgrind, _PROGRAM, os.path.join(folder, f"{posts}.db"), str(posts))
            for posts in _POSTS
        )
        imported = _count(valgrind, "import meter_lib") - _count(valgrind, "pass")
    return {"post": (many - few) // (_POSTS[1] - _POSTS[0]), "import": imported}


def _count(valgrind: str, program: str, *arguments: str) -> int:
    ran = subprocess.run(
        [
            valgrind,
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            sys.executable,
            "-c",
            program,
            *arguments,
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if found is None:
        raise SystemExit(f"valgrind tells no count: {ran.stderr[-300:]}")
    return int(found[1])


def all_kept() -> dict[str, dict[str, int]]:
    """Return the counts that are kept, by the versions they were counted with."""
    with open(_KEPT, encoding="utf-8") as file:
        kept: dict[str, dict[str, int]] = json.load(file)
    return kept


def versions() -> str:
    """Return what the counts depend on."""
    return f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"


def compare(now: dict[str, int], kept: dict[str, int] | None) -> tuple[list[str], bool]:
    """Return a line for each count, and whether one has moved."""
    if kept is None:
        lines = [f"{name}: {count:,} instructions" for name, count in now.items()]
        return [*lines, f"nothing is kept for {versions()}: --keep keeps these"], False
    moved = False
    lines = []
    for name, count in now.items():
        change = count / kept[name] - 1
        is_moved = abs(change) > _TOLERANCE
        moved |= is_moved
        words = "MOVED, review it and --keep it" if is_moved else "as kept"
        lines.append(f"{name}: {count:,} instructions, {change:+.1%}: {words}")
    return lines, moved


def main() -> None:
    """Count, compare, and keep where asked to."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--keep", action="store_true")
    chosen = arguments.parse_args()
    now = counted()
    if now is None:
        print("instructions: not counted, valgrind is not installed")
        return
    kept = all_kept()
    lines, moved = compare(now, kept.get(versions()))
    print("\n".join(lines))
    if chosen.keep:
        with open(_KEPT, "w", encoding="utf-8") as file:
            json.dump({**kept, versions(): now}, file, indent=1, sort_keys=True)
            file.write("\n")
    elif moved:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
