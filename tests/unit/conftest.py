from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.unit.flusher_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same draws, and so the same waits, in every run."""
    state = random.getstate()
    random.seed(7)
    yield
    random.setstate(state)


@pytest.fixture
def bench(bench_with: Callable[..., Bench]) -> Bench:
    """A bench with the usual limits."""
    return bench_with()


@pytest.fixture
def bench_with(tmp_path: Path, seeded: None) -> Iterator[Callable[..., Bench]]:
    """A maker of benches with other limits."""
    del seeded
    made: list[Bench] = []

    def make(**limits: int) -> Bench:
        made.append(Bench(tmp_path / f"outbox-{len(made)}.db", **limits))
        return made[-1]

    yield make
    for one in made:
        one.outbox.close()
