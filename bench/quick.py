"""Compares the working tree with `main`, pair by pair, in less than a minute.

    python bench/quick.py [--against COMMIT] [--seconds S]

Says what moved beyond noise: where each of five pairs and more points the same way (by chance
that happens once in sixteen times), and their median by more than 3 percent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from typing import Any, NamedTuple

from instructions import all_kept, compare, counted, versions
from probe import probe
from rows import shown

__all__ = ["Watched", "verdict"]

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LEAST_CHANGE = 0.03
_LEAST_PAIRS = 5


class Watched(NamedTuple):
    """A figure that is compared, and the probe that finds it."""

    what: str
    figure: str
    probe: str
    arguments: dict[str, Any]  # Any: each probe has its own
    more_is_better: bool = True
    is_exact: bool = False
    """The same on every run: one pair is enough."""


_SHORT = {"seconds": 0.04, "turns": 3}
WATCHED = (
    Watched("post, 1 thread, to raw", "post.1.ratio", "post", {"threads": 1, **_SHORT}),
    Watched("post, 8 threads, to raw", "post.8.ratio", "post", {"threads": 8, **_SHORT}),
    Watched("post_many in hundreds, to raw", "many.ratio", "many", _SHORT),
    Watched(
        "read + settle in hundreds, to raw",
        "settle.100.ratio",
        "settle",
        {"batch": 100, "events": 4000, "turns": 3},
    ),
    Watched(
        "drain over loopback, us of CPU an event",
        "drain.0.cpu_us",
        "drain",
        {"delay_ms": 0, "events": 5000, "turns": 1},
        more_is_better=False,
    ),
    Watched("import, ms of CPU", "weight.import_ms", "weight", {"runs": 2}, more_is_better=False),
    Watched(
        "bytes per lone post",
        "bytes.lone",
        "written",
        {"events": 200},
        more_is_better=False,
        is_exact=True,
    ),
)


def verdict(watched: Watched, pairs: list[tuple[float, float]]) -> str:
    """Return a line: the medians of tree and base, and whether that is more than noise."""
    ratios = [ours / theirs for ours, theirs in pairs]
    change = statistics.median(ratios) - 1
    one_way = min(ratios) > 1 or max(ratios) < 1
    words = "as before"
    if one_way and abs(change) > _LEAST_CHANGE:
        words = "BETTER" if (change > 0) == watched.more_is_better else "WORSE"
        if len(pairs) < _LEAST_PAIRS and not watched.is_exact:
            words = f"perhaps {words.lower()}: {len(pairs)} pairs are too few to tell"
    ours = statistics.median(one for one, _ in pairs)
    theirs = statistics.median(other for _, other in pairs)
    return (
        f"{watched.what:40}{shown(ours):>10}{shown(theirs):>10}{change:+8.1%}"
        f"  ({min(ratios) - 1:+.1%} … {max(ratios) - 1:+.1%})  {words}"
    )


def _tree(root: str, folder: str) -> dict[str, str]:
    """Return the environment in which the product comes from that tree."""
    parts = [root, os.path.join(root, "worker"), os.path.join(root, "migrations")]
    return {
        "PYTHONPATH": os.pathsep.join(parts),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": os.path.join(folder, "compiled"),
    }


def _found(watched: Watched, tree: dict[str, str]) -> float:
    found = probe(watched.probe, watched.arguments, environment=tree)[watched.figure]
    return statistics.median(found if isinstance(found, list) else [found])


def paired(base: str, folder: str, seconds: float) -> list[list[tuple[float, float]]]:
    """Return pairs of what is found in this tree and in the one at `base`, for each figure.

    Round after round, so that the pairs of a figure are spread over all the time.
    """
    trees = _tree(_ROOT, folder), _tree(base, folder)
    found: list[list[tuple[float, float]]] = [[] for _ in WATCHED]
    end = time.monotonic() + seconds
    while time.monotonic() < end or not found[-1]:
        for watched, pairs in zip(WATCHED, found, strict=True):
            if pairs and (watched.is_exact or time.monotonic() > end):
                continue
            ours, theirs = (_found(watched, tree) for tree in trees)
            pairs.append((ours, theirs))
    return found


def main() -> None:
    """Compare, print, and leave no worktree behind."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--against", metavar="COMMIT", default="main")
    arguments.add_argument("--seconds", type=float, default=32.0, help="of taking turns")
    chosen = arguments.parse_args()
    git = shutil.which("git")
    if git is None:
        raise SystemExit("git is not installed: nothing to compare with")
    with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
        base = os.path.join(folder, "base")
        worktree = [git, "-C", _ROOT, "worktree"]
        subprocess.run([*worktree, "add", "--quiet", "--detach", base, chosen.against], check=True)
        try:
            print(f"{'':40}{'this tree':>10}{chosen.against[:9]:>10}")
            found = paired(base, folder, chosen.seconds)
            for watched, pairs in zip(WATCHED, found, strict=True):
                print(verdict(watched, pairs), flush=True)
        finally:
            subprocess.run([*worktree, "remove", "--force", base], check=True)
    now = counted()
    if now is None:
        print("instructions: not counted, valgrind is not installed")
        return
    print("\n".join(compare(now, all_kept().get(versions()))[0]))


if __name__ == "__main__":
    main()
