"""Simulated times of sending, from the clock's own times of sending."""

from liquid_trainer_node.simulated_time import SimulatedTime

TICK = 10_000_000


def clock(ticks: int = 10, pace: int = 2) -> SimulatedTime:
    """Return a clock of ten simulated milliseconds a tick, a tick every `pace` of these."""
    time = SimulatedTime()
    for number in range(ticks):
        time.add(1_000_000_000 + number * pace * TICK, number * TICK)
    return time


def test_a_message_has_the_time_of_the_tick_before_it():
    time = clock()
    for number in range(9):
        for offset in (0, 1, 2 * TICK - 1):
            assert time.at(1_000_000_000 + number * 2 * TICK + offset) == number * TICK


def test_what_comes_after_the_newest_tick_is_not_known_yet():
    time = clock()
    last = 1_000_000_000 + 9 * 2 * TICK
    assert time.at(last) is None and time.at(last - 1) == 8 * TICK
    time.add(last + 5, 9 * TICK + 1)
    assert time.at(last) == 9 * TICK and time.newest == 9 * TICK + 1


def test_before_the_first_tick_it_is_the_first():
    assert SimulatedTime().at(5) is None and SimulatedTime().newest is None
    assert clock().at(5) == 0


def test_a_simulation_that_is_reset_goes_back():
    time = clock()
    last = 1_000_000_000 + 9 * 2 * TICK
    time.add(last + 10, 0)
    time.add(last + 20, TICK)
    assert time.at(last + 15) == 0 and time.at(last + 5) == 9 * TICK


def test_a_tick_that_was_overtaken_is_left_out():
    time = clock()
    time.add(1_000_000_000, 7)
    assert time.at(1_000_000_001) == 0


def test_memory_is_bounded():
    time = SimulatedTime(size=5)
    for number in range(100):
        time.add(number, number)
    assert time.at(3) == 95 and time.at(97) == 97
