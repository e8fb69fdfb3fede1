"""Arithmetic on stamps against answers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_sim import stamp_statistics as statistics
from liquid_sim.run_record import Series

MS = 1_000_000


def test_spread_of_one_to_a_hundred_and_one():
    result = statistics.spread(np.arange(1, 102))
    assert (result.count, result.p50, result.p99, result.highest) == (101, 51, 100, 101)


def test_spread_leaves_out_what_is_not_finite():
    result = statistics.spread(np.array([np.nan, 2.0, np.inf, 4.0]))
    assert (result.count, result.p50, result.highest) == (2, 3.0, 4.0)
    assert np.isnan(statistics.spread(np.array([np.nan])).p50)


def test_rate_counts_intervals_not_messages():
    assert statistics.rate(np.arange(11) * 100 * MS) == pytest.approx(10.0, rel=1e-12)
    assert np.isnan(statistics.rate(np.array([5])))
    assert np.isnan(statistics.rate(np.array([5, 5])))


def test_missing_stamps_are_counted():
    stamps = np.delete(np.arange(100) * 10 * MS, [3, 4, 50])
    assert statistics.lost_by_stamps(stamps) == 3
    assert statistics.longest_gap(stamps) == pytest.approx(0.03)


def test_jitter_is_no_loss():
    jitter = np.random.default_rng(0).integers(-2 * MS, 2 * MS, 200)
    assert statistics.lost_by_stamps(np.arange(200) * 10 * MS + jitter) == 0


def test_camera_on_a_coarser_clock_is_periodic():
    stamps = np.cumsum([0] + [30, 30, 40] * 30) * MS
    assert statistics.lost_by_stamps(stamps) == 0
    assert statistics.lost_by_stamps(np.delete(stamps, [10, 20, 21])) == 3


def test_topic_that_speaks_when_it_wants_has_no_known_losses():
    stamps = np.cumsum(np.random.default_rng(0).exponential(7 * MS, 300)).astype(int)
    assert statistics.lost_by_stamps(stamps) is None
    assert statistics.lost_by_stamps(np.array([1, 2])) is None


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(1, 98), max_size=30))
def test_any_pattern_of_losses_within_a_periodic_topic_is_counted(lost):
    stamps = np.delete(np.arange(100) * 10 * MS, sorted(lost))
    if np.median(np.diff(stamps)) == 10 * MS:
        assert statistics.lost_by_stamps(stamps) == len(lost)


def test_losses_against_the_publishers_count_are_exact():
    recorded = np.delete(np.arange(1, 101) * 10 * MS, [0, 99, 42])
    # Counted from after message 10 to message 90: only the loss in between is within.
    counts = [(100 * MS, 10), (500 * MS, 50), (900 * MS, 90)]
    assert statistics.lost_by_count(recorded, counts) == 1
    assert statistics.lost_by_count(recorded, counts[:1]) is None


def test_first_response_is_the_earliest_answer_that_names_the_cause():
    causes, answers = statistics.first_response(
        np.array([0, 10, 10, 30, 20, 10]), np.array([5, 19, 17, 33, 28, 40]))
    assert causes.tolist() == [10, 20, 30]
    assert answers.tolist() == [17, 28, 33]


def test_matched_finds_equal_stamps_only():
    result = statistics.matched(np.array([30, 10, 20]), np.array([20, 25, 10]),
                                np.array([3.0, 1.0, 2.0]))
    assert result[0] == 2.0 and np.isnan(result[1]) and result[2] == 1.0
    assert np.isnan(statistics.matched(np.zeros(0, int), np.array([1]), np.zeros(0))).all()


def test_interpolation_is_exact_on_a_line_and_refuses_gaps():
    stamps = np.array([0, 10, 20, 1000]) * MS
    series = Series(stamps, np.stack([2.0 * stamps, -1.0 * stamps], axis=1), ('a', 'b'))
    wanted = np.array([-5, 0, 5, 17, 20, 500, 1000, 1001]) * MS
    result = statistics.interpolated(series, wanted, 0.1)
    for row in (1, 2, 3, 4, 6):
        assert result[row] == pytest.approx([2.0 * wanted[row], -1.0 * wanted[row]])
    assert np.isnan(result[[0, 5, 7]]).all()


def test_series_refuses_values_that_do_not_fit():
    with pytest.raises(ValueError, match=r'must be \(2, 1\), got \(3, 1\)'):
        Series(np.zeros(2, int), np.zeros((3, 1)), ('a',))
