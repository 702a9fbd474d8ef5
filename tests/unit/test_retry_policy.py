from __future__ import annotations

import statistics

import pytest

from meter_worker.retry_policy import RetryPolicy

DRAWS = 2000


pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(
    ("failures", "longest"),
    [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (11, 300), (5_000, 300), (10**9, 300)],
)
def test_waits_are_spread_evenly_from_zero_to_a_doubling_bound(
    failures: int, longest: float
) -> None:
    """The jitter comes after the cap: at the cap, too, a fleet is spread over all of it."""
    policy = RetryPolicy(base_seconds=1, max_seconds=300)
    drawn = sorted(policy.wait_seconds(failures) for _ in range(DRAWS))

    assert 0 <= drawn[0] < 0.01 * longest
    assert 0.99 * longest < drawn[-1] <= longest
    quarters = statistics.quantiles(drawn, n=4)
    assert quarters == pytest.approx([longest / 4, longest / 2, longest * 3 / 4], rel=0.1)


def test_the_base_is_the_longest_first_wait() -> None:
    """The first wait is drawn from 0 to the base, whatever the base is."""
    policy = RetryPolicy(base_seconds=60, max_seconds=300)
    drawn = [policy.wait_seconds(1) for _ in range(DRAWS)]

    assert 0 <= min(drawn) < 1
    assert 59 < max(drawn) <= 60


@pytest.mark.parametrize(
    ("asked_for", "waited"),
    [(301, 301), (3_599, 3_599), (3_600, 3_600), (3_601, 3_600), (86_400.0, 3_600), (10e9, 3_600)],
)
def test_retry_after_wins_where_it_is_longer_and_ends_at_an_hour(
    asked_for: float, waited: float
) -> None:
    """The backend is not asked again before it wants to be, within one hour."""
    policy = RetryPolicy(base_seconds=1, max_seconds=300)

    assert policy.wait_seconds(20, retry_after_seconds=asked_for) == waited


@pytest.mark.parametrize("asked_for", [None, 0.0, 1.0])
def test_a_shorter_retry_after_does_not_shorten_the_wait(asked_for: float | None) -> None:
    """Whatever the backend asks for, our own curve is kept."""
    policy = RetryPolicy(base_seconds=1, max_seconds=300)
    drawn = [policy.wait_seconds(9, retry_after_seconds=asked_for) for _ in range(DRAWS)]

    assert statistics.mean(drawn) == pytest.approx(128, rel=0.1)
    assert min(drawn) >= (asked_for or 0)
