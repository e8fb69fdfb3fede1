"""Plans are made as often as asked, from as much as asked, and pass smoothly into each other."""

import numpy as np
import pytest

from liquid_policy.execution import ExecutionSettings, Executor
from liquid_policy.runtime import Distribution, ModeKeeper


class _Counting:
    """A policy that answers with its state: how many observations it has made a plan from."""

    horizon = 4

    def __init__(self):
        self.plans, self.seeds = 0, []

    def seed(self, seed):
        self.seeds.append(seed)

    def initial_state(self):
        return np.zeros(1, np.float32)

    def observe(self, features, vector, elapsed, state):
        return state + 1

    def step(self, features, vector, elapsed, state):
        self.plans += 1
        state = state + 1
        steps = 10.0 * state + np.arange(4, dtype=np.float32)[:, None]
        means = steps[None].astype(np.float32)
        return state, Distribution(np.ones(1, np.float32), means, np.ones_like(means),
                                   np.zeros(0), np.zeros(0))


def _actions(count, **settings):
    policy = _Counting()
    executor = Executor(policy, ModeKeeper(0.1), ExecutionSettings(**settings))
    return policy, [float(executor.act(np.zeros(0), np.zeros(1), 0.1)[0]) for _ in range(count)]


def test_plans_are_followed_for_as_many_steps_as_asked():
    policy, actions = _actions(6, replan=3)
    assert policy.plans == 2
    assert actions == [10, 11, 12, 40, 41, 42]      # the state saw the steps between, too
    policy, actions = _actions(3, replan=1)
    assert policy.plans == 3 and actions == [10, 20, 30]


def test_plan_is_made_from_the_context_only():
    _, actions = _actions(5, replan=1, context=2)
    assert actions == [10, 20, 20, 20, 20]


def test_new_plan_takes_over_step_by_step():
    _, actions = _actions(4, replan=2, blend=1)
    # Second plan: 30, 31, ...; what was left of the first: 12, 13.
    assert actions == [10, 11, 0.5 * 30 + 0.5 * 12, 31]


def test_reset_forgets_and_seeds():
    policy = _Counting()
    executor = Executor(policy, ModeKeeper(0.1), ExecutionSettings(replan=4))
    first = executor.act(np.zeros(0), np.zeros(1), 0.1)
    executor.reset(seed=5)
    assert executor.act(np.zeros(0), np.zeros(1), 0.1) == first and policy.seeds == [5]


@pytest.mark.parametrize('settings, text', [
    ({'replan': 0}, 'replan: expected a whole number of at least 1'),
    ({'context': -1}, 'context'), ({'blend': 0.5}, 'blend'), ({'threshold': 2.0}, 'threshold')])
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        ExecutionSettings(**settings)


def test_no_more_steps_are_followed_than_a_plan_has():
    with pytest.raises(ValueError, match='at most the 4 steps of a plan, came 5'):
        Executor(_Counting(), ModeKeeper(0.1), ExecutionSettings(replan=5))


def test_plan_goes_on_without_observations_and_then_holds():
    policy = _Counting()
    executor = Executor(policy, ModeKeeper(0.1), ExecutionSettings(replan=2))
    with pytest.raises(ValueError, match='first observation'):
        executor.coast()
    first = executor.act(np.zeros(0), np.zeros(1), 0.1)
    assert [float(a[0]) for a in (first, *(executor.coast() for _ in range(5)))] \
        == [10, 11, 12, 13, 13, 13]
    assert policy.plans == 1
    # The next observation ends the old plan, which was followed for longer than asked.
    assert float(executor.act(np.zeros(0), np.zeros(1), 0.6)[0]) == 20 and policy.plans == 2
