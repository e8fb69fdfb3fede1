"""Flower brings robots together; broken and malicious ones, privacy, secure sums."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('flwr', reason='pip install -r docker/requirements-fleet.txt')

from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.settings import CoreSettings, MixtureSettings, PolicySettings  # noqa: E402
from liquid_trainer.fleet import FleetError, travelling_weights  # noqa: E402
from liquid_trainer.fleet_app import (  # noqa: E402
    make_client,
    model_digest,
    run_rounds,
    run_secure,
)
from liquid_trainer.fleet_local import LocalGrid  # noqa: E402
from liquid_trainer.fleet_strategy import make_strategy  # noqa: E402

ROBOTS = 7


def _policy():
    torch.manual_seed(0)
    return Policy(PolicySettings(
        vector_size=3, action_size=2, target_size=0, encoder=None, core=CoreSettings(units=4),
        head=MixtureSettings(components=2, horizon=2, hidden=8)))


class Robot:
    """Learns to add its number to every weight, so that all results are known."""

    seconds = 10

    def __init__(self, number, spoil=None):
        self.policy, self.number, self._spoil = _policy(), number, spoil

    def learn(self, weights, round_number):
        learned = {name: value + np.float32(self.number) for name, value in weights.items()}
        if self._spoil == 'dies':
            raise RuntimeError('motor on fire')
        if self._spoil == 'nan':
            learned = {name: value * np.nan for name, value in learned.items()}
        elif self._spoil == 'far':
            learned = {name: value + np.float32(1e6) for name, value in learned.items()}
        elif self._spoil == 'shape':
            learned = {name: value[..., None] for name, value in learned.items()}
        elif self._spoil == 'claims':
            self.seconds = 10**6
        return learned, 0.5

    def score(self, weights):
        return {'nll': float(self.number)}


def _grid(spoil=None):
    robots = [Robot(number, spoil if number == ROBOTS else None)
              for number in range(1, ROBOTS + 1)]
    return LocalGrid(make_client(lambda context: robots[context.node_config['robot']]),
                     [{'robot': index} for index in range(ROBOTS)])


def _grown(found):
    """By how much all weights have grown; all alike."""
    start = travelling_weights(_policy())
    grown = np.concatenate([(found[name] - value).ravel() for name, value in start.items()])
    assert np.ptp(grown) < 1e-3 + 1e-5 * abs(grown.mean())     # float32
    return float(grown.mean())


def _run(name, spoil=None, rounds=1, **more):
    strategy = make_strategy(name, ROBOTS, **more)
    found, result = run_rounds(_grid(spoil), strategy, travelling_weights(_policy()), rounds,
                               model_digest(_policy()))
    return _grown(found), strategy, result


def test_all_robots_count():
    grown, strategy, result = _run('average', rounds=2)
    assert grown == pytest.approx(2 * 4.0, abs=1e-4)        # the mean of 1 to 7, twice
    assert result.evaluate_metrics_clientapp[2]['nll'] == pytest.approx(4.0)
    assert strategy.refused == []


@pytest.mark.parametrize('spoil, why', [
    ('nan', 'expected finite numbers'), ('shape', 'expected the shape'), ('dies', 'motor on fire'),
    ('claims', 'expected up to 100 s of demonstration, came 1000000'),
])
def test_what_cannot_be_used_is_refused_and_the_others_count(spoil, why):
    grown, strategy, _ = _run('average', spoil)
    assert grown == pytest.approx(3.5, abs=1e-4)            # the mean of 1 to 6
    (number, robot, reason), = strategy.refused
    assert (number, robot) == (1, ROBOTS) and why in reason


@pytest.mark.parametrize('name, low, high', [
    ('median', 4, 4), ('trimmed', 4, 4), ('krum', 1, 6), ('multikrum', 3.5, 3.5),
])
def test_robot_that_sends_nonsense_is_outvoted(name, low, high):
    grown, strategy, _ = _run(name, 'far')
    assert low - 1e-3 <= grown <= high + 1e-3
    assert strategy.refused == []                           # finite, and of the right shape
    assert _run('average', 'far')[0] > 1e5                  # without a vote it has its way


def test_all_robots_broken_leave_the_weights_as_they_were():
    robot = Robot(1, 'nan')
    grid = LocalGrid(make_client(lambda context: robot), [{}] * ROBOTS)
    found, _ = run_rounds(grid, make_strategy('median', ROBOTS), travelling_weights(_policy()), 1)
    assert _grown(found) == 0.0


def test_another_checkpoint_on_a_robot_is_refused():
    strategy = make_strategy('median', ROBOTS)
    run_rounds(_grid(), strategy, travelling_weights(_policy()), 1, 'another')
    assert len(strategy.refused) == ROBOTS
    assert 'give this robot the checkpoint' in strategy.refused[0][2]


def test_private_updates_are_clipped_on_the_robot():
    start = travelling_weights(_policy())
    strategy = make_strategy('average', ROBOTS, noise=1e-9, clip=0.5, score=False)
    found, _ = run_rounds(_grid(), strategy, start, 1)
    moved = np.concatenate([(found[name] - value).ravel() for name, value in start.items()])
    # All robots move in the same direction, so the mean is as long as each: as long as allowed.
    assert np.linalg.norm(moved) == pytest.approx(0.5, rel=1e-3)
    noisy, _ = run_rounds(_grid(), make_strategy('average', ROBOTS, noise=1.0, clip=0.5,
                                                 score=False), start, 1)
    spread = np.concatenate([(noisy[name] - found[name]).ravel() for name in start]).std()
    assert spread == pytest.approx(0.5 / ROBOTS, rel=0.3)   # noise x clip / robots


def test_secure_sums_are_the_mean():
    start = {name: np.zeros_like(value) for name, value in travelling_weights(_policy()).items()}
    found = run_secure(_grid(), _context(), start, 1, ROBOTS)
    for value in found.values():
        np.testing.assert_allclose(value, 4.0, atol=16 / 2**22)     # steps of the whole numbers


def _context():
    from flwr.app import Context, RecordDict
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


def test_strategies_that_cannot_withstand_are_refused():
    with pytest.raises(FleetError, match='expected more than 4 robots to withstand 1, came 4'):
        make_strategy('krum', 4)
    with pytest.raises(FleetError, match="expected average, median.*came 'best'"):
        make_strategy('best', 9)
