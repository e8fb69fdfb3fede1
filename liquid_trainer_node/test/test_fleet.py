"""A robot of a fleet learns what it is sent; broken robots do not reach the others."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).parent))

from synthetic import follow_episode  # noqa: E402

from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CoreSettings,
    EncoderSettings,
    MixtureSettings,
    PolicySettings,
)
from liquid_trainer.fleet import (  # noqa: E402
    FleetError,
    FleetMember,
    FleetSettings,
    take_weights,
    travelling_weights,
)
from liquid_trainer.learner import fit_scaling  # noqa: E402
from liquid_trainer.windows import Demonstrations  # noqa: E402

UNITS = ('m/s', 'm/s', '1'), ('m', 'm', 'm', 'm/s')


def _policy(seed=0):
    torch.manual_seed(seed)
    return Policy(PolicySettings(
        vector_size=5, action_size=3, target_size=4, encoder=EncoderSettings(width=0.1, size=8,
                                                                         points=2),
        core=CoreSettings(units=8), head=MixtureSettings(components=2, horizon=4, hidden=16)))


@pytest.fixture(scope='module')
def member():
    data, held = (Demonstrations([follow_episode(n, seconds=1.0) for n in numbers])
                  for numbers in ((0, 1, 2, 3), (4, 5)))
    policy = _policy()
    fit_scaling(policy, data, *UNITS)

    def features(of):
        # As an encoder that has found the square: its position, and nothing else.
        found = np.zeros((of.image_count, 8), np.float32)
        found[of.frame_images, :2] = of.targets[of.frame_stamped, :2]
        return found

    return FleetMember(policy, data, features(data), held, features(held), UNITS[1],
                       FleetSettings(rounds=2, steps=12, batch=8, window=0.3, rate=2e-2))


def test_a_robot_learns_from_what_it_is_sent_and_keeps_nothing(member):
    start = travelling_weights(_policy(1))
    before = member.score(start)['nll']
    weights = start
    for number in (1, 2):
        weights, loss = member.learn(weights, number)
    assert np.isfinite(loss)
    assert member.score(weights)['nll'] < before - 0.2
    # Switched off and on again: the same weights give the same answer.
    again = start
    for number in (1, 2):
        again, _ = member.learn(again, number)
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value)
    assert member.seconds == 4


def test_only_core_and_heads_travel(member):
    names = travelling_weights(member.policy)
    assert {name.partition('.')[0] for name in names} == {'core', 'head', 'estimate'}


@pytest.mark.parametrize('spoil, text', [
    (lambda w: {**w, next(iter(w)): np.full_like(w[next(iter(w))], np.nan)}, 'expected finite'),
    (lambda w: dict(list(w.items())[1:]), "expected those of the fleet's policy"),
    (lambda w: {**w, next(iter(w)): np.zeros((1, 2, 3))}, 'expected the shape'),
])
def test_weights_that_cannot_be_used_are_refused_and_change_nothing(spoil, text):
    policy = _policy()
    before = travelling_weights(policy)
    with pytest.raises(FleetError, match=text):
        take_weights(policy, spoil(travelling_weights(_policy(1))))
    for name, value in travelling_weights(policy).items():
        np.testing.assert_array_equal(value, before[name])


def test_flower_that_is_missing_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'flwr', None)
    monkeypatch.setitem(sys.modules, 'flwr.app', None)
    monkeypatch.delitem(sys.modules, 'liquid_trainer.flower', raising=False)
    with pytest.raises(ImportError, match='pip install -r docker/requirements-fleet.txt'):
        __import__('liquid_trainer.flower')
    assert (Path(__file__).parents[2] / 'docker' / 'requirements-fleet.txt').exists()
