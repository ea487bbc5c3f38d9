"""The simulated queue by hand, and against what queueing theory knows."""

import numpy as np
import pytest

from benchmarks.serving.simulated_queue import ServiceTimes, simulate
from loadtest.open_loop import arrivals

MD1_SERVICE_S, MD1_LOAD = 0.01, 0.7


def constant(seconds: float, largest: int = 1) -> ServiceTimes:
    return ServiceTimes({1: [seconds]}, largest)


def test_a_server_takes_all_that_waits_up_to_its_largest_batch():
    """One second a batch of one or two: the first alone until 1, the next two until 2, the last until 3."""
    latencies = simulate(np.array([0.0, 0.1, 0.2, 0.3]), [constant(1.0, largest=2)])
    assert latencies == pytest.approx([1.0, 1.9, 1.8, 2.7])


def test_stages_work_at_the_same_time_on_cores_of_their_own():
    """0 is in the first stage until 1 and in the second until 2; 1 is a second later in each."""
    assert simulate(np.array([0.0, 1.0]), [constant(1.0), constant(1.0)]) == pytest.approx([2.0, 2.0])


def test_stages_share_a_core():
    """From 1 on both are busy at half speed: until 3, when the second stage begins with the second request."""
    latencies = simulate(np.array([0.0, 1.0]), [constant(1.0), constant(1.0)], cores=1)
    assert latencies == pytest.approx([3.0, 3.0])


def test_stages_of_two_threads_share_two_cores():
    latencies = simulate(np.array([0.0, 1.0]), [constant(1.0), constant(1.0)], cores=2, threads=2)
    assert latencies == pytest.approx([3.0, 3.0])


def test_mean_wait_is_that_of_m_d_1():
    """Poisson arrivals, one server, constant service s at load r: r s / (2 (1 - r)) on average (Pollaczek-Khinchin)."""
    came = arrivals(MD1_LOAD / MD1_SERVICE_S, 2_000, seed=1)
    waits = simulate(came, [constant(MD1_SERVICE_S)]) - MD1_SERVICE_S
    assert len(came) > 130_000
    assert waits.mean() == pytest.approx(MD1_LOAD * MD1_SERVICE_S / (2 * (1 - MD1_LOAD)), rel=0.05)


def test_waits_follow_from_one_arrival_to_the_next():
    """Lindley: who comes waits for what was left of the work before, less the time since."""
    came, waits = arrivals(MD1_LOAD / MD1_SERVICE_S, 100, seed=3), [0.0]
    for gap in np.diff(came).tolist():
        waits.append(max(0.0, waits[-1] + MD1_SERVICE_S - gap))
    assert simulate(came, [constant(MD1_SERVICE_S)]) - MD1_SERVICE_S == pytest.approx(waits, abs=1e-9)


def test_times_between_measured_sizes_are_interpolated_quantile_by_quantile():
    times = ServiceTimes({1: [1.0, 2.0], 3: [5.0, 8.0]}, largest=4)
    shortest, longest = 0, times.draws - 1
    assert [times.draw(size, shortest) for size in (1, 2, 3, 4)] == pytest.approx([1.0, 3.0, 5.0, 5.0])
    assert [times.draw(size, longest) for size in (1, 2, 3, 4)] == pytest.approx([2.0, 5.0, 8.0, 8.0])
    assert times.mean_s(1) == pytest.approx(1.5)


def test_draws_have_the_measured_spread():
    rare = arrivals(0.1, 20_000, seed=2)  # nobody waits
    times = ServiceTimes({1: [0.001] * 90 + [0.002] * 10}, largest=1)
    latencies = simulate(rare, [times])
    assert 0.07 < (latencies > 0.0015).mean() < 0.13
