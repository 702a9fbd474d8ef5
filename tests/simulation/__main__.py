"""Run the simulation by hand: one seed with its story, or seeds without end.

python -m tests.simulation --seed 7 --steps 400
python -m tests.simulation --seconds 600

Without end, or for so long, it begins with seeds that nobody has run, unless told which.
"""

# ruff: noqa: T201  # it prints what it found
from __future__ import annotations

import argparse
import itertools
import sys
import time

from tests.simulation.world import run

STEPS = 400


def main() -> int:
    """Return 0 if all worlds kept the promises."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="run this one, and tell its story if it fails")
    parser.add_argument("--first", type=int, help="the seed to begin with")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seconds", type=float, help="how long (default: until interrupted)")
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given.seed, given.steps)
    began = time.monotonic()
    failed = 0
    first = seed = int(time.time()) * 1000 if given.first is None else given.first
    try:
        for seed in itertools.count(first):
            if given.seconds is not None and time.monotonic() - began > given.seconds:
                break
            if seed % 100 == 0 and sys.stderr.isatty():
                print(f"seed {seed}, {time.monotonic() - began:.0f} s", file=sys.stderr)
            try:
                run(seed, given.steps)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
                failed += 1
                print(f"{type(error).__name__}: {error}"[:300])
                print(f"    python -m tests.simulation --seed {seed} --steps {given.steps}")
                if not given.all:
                    return 1
    except KeyboardInterrupt:
        pass
    print(f"{seed - first} worlds of {given.steps} steps, {failed} failed")
    return 1 if failed else 0


def _one(seed: int, steps: int) -> int:
    story: list[str] = []
    try:
        run(seed, steps, story=story)
    except Exception:
        print("\n".join(story))
        raise
    print("nothing broke")
    return 0


if __name__ == "__main__":
    sys.exit(main())
