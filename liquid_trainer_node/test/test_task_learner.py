"""Learning from arrays: it learns, it resumes exactly, and it refuses what does not fit."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CoreSettings,
    FlowSettings,
    MixtureSettings,
    PolicySettings,
)
from liquid_trainer.arrays import ArrayEpisodes  # noqa: E402
from liquid_trainer.resume import ResumeError  # noqa: E402
from liquid_trainer.task_learner import TaskLearner, TaskLearningSettings  # noqa: E402


def _data(seed=0):
    """A point is driven towards a goal: the action says where it goes next."""
    rng = np.random.default_rng(seed)
    vectors, actions, ends = [], [], []
    for _ in range(30):
        place, goal = rng.uniform(0, 100, 2), rng.uniform(0, 100, 2)
        for _ in range(12):
            vectors.append(np.concatenate((place, goal)))
            place = place + 0.2 * (goal - place)
            actions.append(place)
        ends.append(len(vectors))
    return ArrayEpisodes(np.array(vectors), np.array(actions), np.array(ends))


def _learner(head=None, seed=0, **settings):
    torch.manual_seed(0)
    head = head or MixtureSettings(components=2, horizon=4, dt=0.1, hidden=32)
    policy = Policy(PolicySettings(vector_size=4, action_size=2, target_size=0, encoder=None,
                                   core=CoreSettings(units=16, unit_time=0.1), head=head,
                                   relative=(0, 1)))
    made = {'steps': 100, 'batch': 64, 'rate': 3e-3, 'noise': 0.0, 'average': 0.95, **settings}
    return TaskLearner(policy, _data(), TaskLearningSettings(seed=seed, **made))


def test_it_learns_where_the_point_goes():
    learner, other = _learner(), _data(seed=1)
    before = learner.score(other)
    while learner.step_count < learner.settings.steps:
        learner.step()
    after = learner.score(other)
    assert after['best_error'] < 0.25 * before['best_error']
    assert after['loss'] < before['loss'] - 1.0
    learner.finish()
    data = _data(seed=1)
    vectors, actions = torch.from_numpy(data.vectors[:40]), data.actions[:40]
    with torch.no_grad():
        _, answer = learner.policy.step(vectors, torch.full((40, 1), 0.1),
                                        learner.policy.initial_state(40))
    # In the units of the data: a step goes 8 on average.
    assert np.abs(answer.mixture.heaviest()[:, 0].numpy() - actions).mean() < 2.0


@pytest.mark.parametrize('head', [None, FlowSettings(horizon=4, dt=0.1, hidden=16, width=16,
                                                     depth=1, dropout=0.1)])
def test_learning_goes_on_as_if_never_stopped(tmp_path, head):
    straight = _learner(head)
    for _ in range(8):
        straight.step()
    first = _learner(head)
    for _ in range(5):
        first.step()
    first.save(tmp_path / 'state', {'spent': 3.5})
    torch.manual_seed(99)
    second = _learner(head)
    assert second.load(tmp_path / 'state') == {'spent': 3.5} and second.step_count == 5
    for _ in range(3):
        second.step()
    for name, value in straight.average.items():
        assert torch.equal(value, second.average[name]), name


def test_another_policy_or_setting_is_not_gone_on_with(tmp_path):
    _learner().save(tmp_path / 'state', {})
    with pytest.raises(ResumeError, match='expected settings .*use the same arguments'):
        _learner(seed=1).load(tmp_path / 'state')
    with pytest.raises(ResumeError, match='expected policy'):
        _learner(FlowSettings(horizon=4, dt=0.1)).load(tmp_path / 'state')
    (tmp_path / 'state').write_bytes(b'not a state')
    with pytest.raises(ResumeError, match='start without --resume'):
        _learner().load(tmp_path / 'state')


def test_data_of_another_size_are_refused():
    learner = _learner()
    data = learner.data
    with pytest.raises(ValueError, match='expected 4 numbers observed and 2 done per step'):
        TaskLearner(learner.policy, ArrayEpisodes(data.vectors[:, :3], data.actions, data.ends),
                    learner.settings)


@pytest.mark.parametrize('settings, text', [
    ({'steps': 0}, 'steps'), ({'rate': 0.0}, 'rate'), ({'noise': -1.0}, 'noise'),
    ({'held_out': 1.0}, 'held_out')])
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        TaskLearningSettings(**settings)


@pytest.mark.parametrize('known', [True, False])
def test_core_is_told_the_time_between_observations_that_arrived(monkeypatch, known):
    learner = _learner(lost=0.5, context=5, elapsed_known=known)
    told, seen = [], []
    sequence, windows = learner.policy.core.sequence, learner.data.windows

    def listen(x, elapsed, *more):
        told.append(elapsed[:, :, 0])
        return sequence(x, elapsed, *more)

    def look(data, steps, context, horizon, gaps):
        seen.append(gaps)
        return windows(steps, context, horizon, gaps)

    monkeypatch.setattr(learner.policy.core, 'sequence', listen)
    monkeypatch.setattr(ArrayEpisodes, 'windows', look)
    learner.step()
    gaps = seen[0]
    assert gaps.shape == (64, 4)
    # One in two lost: a gap is geometric, of mean 2 and variance 2.
    assert gaps.min() == 1 and abs(gaps.mean() - 2.0) < 3 * np.sqrt(2 / gaps.size)
    expected = 0.1 * gaps if known else np.full(gaps.shape, 0.1)
    np.testing.assert_allclose(told[0][:, 1:].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(told[0][:, 0].numpy(), 0.1, rtol=1e-6)
