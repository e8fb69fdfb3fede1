"""The schedule keeps real time, catches up a little and gives up the rest."""

import pytest

from liquid_sim.pacing import Pacer

MS = 1_000_000


def test_ticks_are_due_at_a_multiple_of_the_period():
    pacer = Pacer(0.01, 1.0)
    pacer.begin(1000 * MS)
    assert [pacer.next(1000 * MS) for _ in range(3)] == [1010 * MS, 1020 * MS, 1030 * MS]


def test_factor_stretches_the_period():
    pacer = Pacer(0.01, 0.25)
    pacer.begin(0)
    assert pacer.next(0) == 40 * MS


def test_small_delay_is_caught_up():
    pacer = Pacer(0.01, 1.0, most_behind=0.05)
    pacer.begin(0)
    assert pacer.next(35 * MS) == 10 * MS
    assert pacer.next(36 * MS) == 20 * MS
    assert pacer.skipped == 0.0


def test_large_delay_moves_the_schedule_and_is_counted():
    pacer = Pacer(0.01, 1.0, most_behind=0.05)
    pacer.begin(0)
    assert pacer.next(100 * MS) == 100 * MS
    assert pacer.next(101 * MS) == 110 * MS
    assert pacer.skipped == pytest.approx(0.09)


def test_overrun_is_more_than_half_a_period_late():
    pacer = Pacer(0.01, 1.0)
    pacer.begin(0)
    pacer.next(0)
    assert not pacer.done(15 * MS)
    assert pacer.done(15 * MS + 1)
    assert pacer.overruns == 1


def test_as_fast_as_possible_never_waits_and_is_never_late():
    pacer = Pacer(0.01, 0.0)
    pacer.begin(0)
    assert pacer.next(7 * MS) == 7 * MS
    assert not pacer.done(700 * MS)


def test_negative_factor_is_refused():
    with pytest.raises(ValueError, match='expected 0 or more, got -1'):
        Pacer(0.01, -1.0)
