"""Break the product on purpose, one deliberate bug at a time, and see that a test notices.

    python tests/mutants/run.py [NAME...]

Each mutant is applied to a copy of the sources, and the tests named with it are run
there. A mutant that no test notices survives, and the run ends with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from mutants import MUTANTS, Mutant  # noqa: E402  # beside this file, on no path before

SOURCES = ("meter_lib", "worker", "migrations", "tests", "pyproject.toml", "README.md", "docs")
AT_ONCE = max(1, min(4, os.cpu_count() or 1))
LONGEST_SECONDS = 600


def is_noticed(mutant: Mutant | None, tests: Iterable[str], folder: Path) -> bool:
    """Run the tests on a copy of the sources, with the bug in it; return whether one fails."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    if mutant is not None:
        place = folder / mutant.file
        place.write_text(mutant.applied_to(place.read_text(encoding="utf-8")), encoding="utf-8")
    paths = [folder, folder / "worker", folder / "migrations"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--basetemp={folder / 'tmp'}", *tests]
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # It hangs, which nobody would overlook.
        return True
    if ended.returncode not in (0, 1):
        # Neither passed nor failed: the tests themselves could not be run.
        name = mutant.name if mutant else "without a bug"
        raise RuntimeError(f"{name}: pytest ended with {ended.returncode}\n{ended.stdout}")
    return ended.returncode == 1


def tried(mutant: Mutant) -> tuple[Mutant, bool]:
    """Try one mutant in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        return mutant, is_noticed(mutant, mutant.tests, Path(folder))


def main(names: list[str]) -> int:
    """Try the mutants named, or all; print what became of each."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        if is_noticed(None, tests, Path(folder)):
            print("the tests fail without any bug: nothing can be told")
            return 1
    survivors = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, noticed in pool.map(tried, chosen):
            print("killed  " if noticed else "SURVIVED", mutant.name, flush=True)
            if not noticed:
                survivors.append(mutant)
    killed = len(chosen) - len(survivors)
    print(f"{killed} of {len(chosen)} mutants killed ({killed / max(1, len(chosen)):.0%})")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
