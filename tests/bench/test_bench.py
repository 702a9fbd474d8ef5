"""The benchmarks run, and the page that shows their figures is the one they make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"


def run(script: str, *arguments: str) -> str:
    """Run a script of the benchmarks and return what it prints."""
    return subprocess.run(
        [sys.executable, BENCH / script, *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_every_probe_of_the_benchmark_runs(tmp_path: Path) -> None:
    """`make bench` measures each target; with tiny sizes here, to see that it does not rot."""
    results = tmp_path / "results.json"
    table = run("bench.py", "--tiny", "--runs", "1", "--no-peers", "--write", str(results))
    unmeasured = {line[:4].strip() for line in table.splitlines() if "not measured" in line}
    # Those of many threads, processes and events; and where there is no strace, S9.
    assert unmeasured - {"S9"} == {"S2", "S3", "S4", "S7"}, table
    page = run("report.py", "--text-only", "--from", str(results))
    assert all(f"| S{number} |" in page for number in range(1, 15))


def test_the_page_of_figures_is_made_from_the_results() -> None:
    """docs/performance.md is what `make bench-report` makes of bench/results.json."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert run("report.py", "--text-only") == page


def test_a_change_within_noise_is_not_called_one() -> None:
    """`make bench-quick` calls better or worse only what moved in each of enough pairs."""
    assert _sayings() == [
        "as before",
        "BETTER",
        "WORSE",
        "perhaps worse: 2 pairs are too few to tell",
    ]


def _sayings() -> list[str]:
    program = f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
from quick import WATCHED, verdict
faster = next(one for one in WATCHED if one.more_is_better)
slower = next(one for one in WATCHED if not one.more_is_better and not one.is_exact)
for watched, pairs in (
    (faster, [(1.2, 1.0), (0.9, 1.0), (1.2, 1.0), (1.2, 1.0), (1.2, 1.0)]),
    (faster, [(1.2, 1.0)] * 5),
    (slower, [(1.2, 1.0)] * 5),
    (slower, [(1.2, 1.0)] * 2),
):
    print(verdict(watched, pairs).rpartition(")  ")[2])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return ran.stdout.splitlines()
