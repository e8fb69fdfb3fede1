"""Training behind the filter's own constraints: same bounds, gradients, nothing else changed."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('xacro')
sys.path.insert(0, str(Path(__file__).parent))

from synthetic import follow_episode  # noqa: E402

from liquid_policy.barrier_rows import GuardRows  # noqa: E402
from liquid_policy.heads.mixture import Mixture  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.limits import LimitsError, load_limits  # noqa: E402
from liquid_policy.policy import Scaling  # noqa: E402
from liquid_trainer.building import build_policy  # noqa: E402
from liquid_trainer.safe_actions import SafeActions, find_description  # noqa: E402
from liquid_trainer.settings import LearningSettings  # noqa: E402
from liquid_trainer.train import parse_arguments  # noqa: E402
from liquid_trainer.training import Training  # noqa: E402
from liquid_trainer.windows import Demonstrations  # noqa: E402

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'
ROBOT = load_interface(INTERFACE)
DESCRIPTION = find_description(INTERFACE, ROBOT.description)
SIZE = ROBOT.action_size


class Sum:
    """Limits the sum of the first two commands; the second row is soft."""

    names = ('sum', 'wish')
    priority = np.array([0, 1])

    def begin(self, moment):
        pass

    def rows(self, reference):
        matrix = np.zeros((2, SIZE))
        matrix[0, :2], matrix[1, 2] = 1.0, 1.0
        return GuardRows(matrix, np.full(2, -np.inf), np.array([0.05, -10.0]), np.zeros(2))

    def excess(self, command):
        raise AssertionError('the layer needs rows only')


@pytest.fixture(scope='module')
def episodes():
    rng = np.random.default_rng(0)
    made = []
    for number in range(4):
        episode = follow_episode(number, seconds=0.6)
        count = len(episode.times)
        # Slow joints in the middle of their ranges, suction and base at rest.
        actions = np.cumsum(rng.normal(0, 0.002, (count, SIZE)), 0)
        actions[:, 6:] = 0.0
        vectors = rng.normal(0, 0.1, (count, ROBOT.vector_size))
        made.append(dataclasses.replace(episode, vectors=vectors.astype(np.float32),
                                        actions=actions.astype(np.float32)))
    return made


@pytest.fixture(scope='module')
def limits():
    return load_limits(ROBOT, DESCRIPTION)


def scaling():
    made = Scaling(SIZE)
    made.scale.copy_(torch.linspace(0.1, 0.9, SIZE))
    made.center.copy_(torch.linspace(-0.1, 0.1, SIZE))
    return made


def mixture(actions: np.ndarray, horizon: int = 3) -> Mixture:
    """Return two components whose first step is `actions` and twice `actions`, normalised."""
    normal = scaling()(torch.from_numpy(actions))
    means = torch.stack((normal, scaling()(torch.from_numpy(2 * actions))), 1)[:, :, None]
    means = means.repeat(1, 1, horizon, 1).requires_grad_()
    return Mixture(torch.zeros(len(actions), 2), means, torch.ones_like(means))


def test_an_unsafe_first_step_is_what_the_filter_would_let_through(episodes, limits):
    data = Demonstrations(episodes)
    safe = SafeActions(ROBOT, limits, data)
    elbow = limits.names.index('elbow_joint')
    column = ROBOT.vector_names.index('joint_positions.position.elbow_joint')
    data.vectors[40, column] = limits.upper[elbow] - 0.03
    assert safe.constraints(40).high[elbow] < 0.3 * safe.constraints(5).high[elbow]
    ticks = np.array([0, 5, 40, 100])
    wanted = np.random.default_rng(1).normal(0, 3, (4, SIZE)).astype(np.float32)
    given = mixture(wanted)
    answer, share = safe(given, ticks, scaling(), np.random.default_rng(0))
    assert share == 1.0
    for row, tick in enumerate(ticks):
        rows = safe.constraints(int(tick))
        clipped = np.clip(wanted[row], rows.low, rows.high)      # a box: the nearest is clipping
        found = scaling().inverse(answer.means[row, 0, 0]).detach().numpy()
        assert found == pytest.approx(clipped, abs=1e-5)
        assert (rows.high <= limits.high).all() and (rows.low >= limits.low).all()
    assert torch.equal(answer.means[:, :, 1:], given.means[:, :, 1:])
    answer.means.sum().backward()
    assert torch.isfinite(given.means.grad).all()


def test_how_far_the_demonstration_is_does_not_bound_a_proposal(episodes):
    """Forces of a change would give the answer away: to turn round at once is no breach."""
    pytest.importorskip('pinocchio')
    pytest.importorskip('daqp')
    data = Demonstrations(episodes)
    data.actions[:, :6] = 0.4
    data.vectors[:, -6:] = [0.0, -1.2, 1.0, -1.0, -1.5, 0.0]    # the arm up and clear of all
    constraints = SafeActions.load(ROBOT, DESCRIPTION, data).constraints(3)
    assert any(name.startswith('distance/') for name in constraints.names)
    assert constraints.excess(-data.actions[2].astype(float)).max() == 0.0


def test_safe_answers_pass_bit_for_bit_with_their_gradients(episodes, limits):
    data = Demonstrations(episodes)
    safe = SafeActions(ROBOT, limits, data)
    ticks = np.arange(10, 20)
    # Far from the demonstrated command, but as fast as the joints may be.
    actions = np.tile(0.5 * np.minimum(limits.high, 1.0), (10, 1)).astype(np.float32)
    assert (np.abs(actions - data.actions[ticks - 1]) > limits.acceleration * 0.02).any()
    given = mixture(actions)
    given = dataclasses.replace(given, means=given.means[:, :1].detach().requires_grad_())
    answer, share = safe(given, ticks, scaling(), np.random.default_rng(0))
    assert share == 0.0 and torch.equal(answer.means, given.means)
    answer.means.sum().backward()
    assert torch.equal(given.means.grad, torch.ones_like(given.means))


def test_rows_of_the_whole_robot_hold_and_soft_ones_give_way(episodes, limits):
    data = Demonstrations(episodes)
    safe = SafeActions(ROBOT, limits, data, guards=(Sum(),))
    assert safe.constraints(50).names[-2:] == Sum.names
    ticks = np.arange(50, 58)
    wanted = data.actions[ticks - 1].copy()
    wanted[:, :2] += 0.04
    answer, _ = safe(mixture(wanted), ticks, scaling(), np.random.default_rng(0))
    found = scaling().inverse(answer.means[:, :, 0]).detach().numpy()
    assert (found[..., :2].sum(-1) < 0.05 + 1e-4).all()
    for row, tick in enumerate(ticks):      # the wish cannot be had, and breaks nothing
        rows = safe.constraints(int(tick))
        assert (found[row] <= rows.high[:SIZE] + 1e-4).all()
        assert (found[row] >= rows.low[:SIZE] - 1e-4).all()


def test_chunks_without_a_mixture_are_made_safe_too_and_rows_are_chosen(episodes, limits):
    data = Demonstrations(episodes)
    safe = SafeActions(ROBOT, limits, data, rows=6)
    ticks = np.arange(20, 40)
    chunks = torch.full((20, 4, SIZE), 50.0)
    answer, share = safe(chunks, ticks, scaling(), np.random.default_rng(0))
    changed = (answer[:, 0] != chunks[:, 0]).any(1)
    assert changed.sum() == 6 and share == 1.0
    assert torch.equal(answer[:, 1:], chunks[:, 1:])


def test_training_with_the_barrier_learns_behind_it(episodes, tmp_path):
    settings = LearningSettings(steps=(0, 3, 0), core_batch=3, core_window=0.3, held_out=0.25,
                                threads=1, safe='barrier')
    torch.manual_seed(0)
    training = Training(episodes, ROBOT, build_policy(ROBOT, 'cfc', 0.25), settings, tmp_path,
                        quiet=True, description=DESCRIPTION)
    learner = training.learner
    learner.features = np.zeros((training.data.image_count, 128), np.float32)
    learner.begin('core')
    values = [learner.step(step / 3) for step in range(3)]
    assert all(np.isfinite(value['loss']) and value['gradient'] > 0.0 for value in values)
    assert all(0.0 <= value['unsafe'] <= 1.0 for value in values)
    assert training.card()['learning']['safe'] == 'barrier'


def test_without_it_nothing_is_loaded(episodes, tmp_path):
    settings = LearningSettings(steps=(1, 0, 0), held_out=0.25, threads=1)
    training = Training(episodes, ROBOT, build_policy(ROBOT, 'cfc', 0.25), settings, tmp_path,
                        quiet=True)
    assert training.learner.safe is None
    # Settings saved before there was a choice.
    old = {name: value for name, value in settings.to_dict().items() if name != 'safe'}
    assert LearningSettings(**old) == settings


def test_mistakes_are_named(episodes, limits, tmp_path):
    with pytest.raises(ValueError, match='safe: expected one of none, barrier'):
        LearningSettings(safe='maybe')
    barrier = LearningSettings(steps=(1, 0, 0), held_out=0.25, threads=1, safe='barrier')
    with pytest.raises(ValueError, match='expected a robot description'):
        Training(episodes, ROBOT, build_policy(ROBOT, 'cfc', 0.25), barrier, tmp_path, quiet=True)
    with pytest.raises(LimitsError, match='found none'):
        find_description(INTERFACE, 'other.urdf')
    with pytest.raises(LimitsError, match='expected its position among the observations'):
        SafeActions(SimpleNamespace(vector_names=('imu.x',)), limits, Demonstrations(episodes))


def test_the_command_line_knows_the_choice():
    given = ['--bags', 'b', '--interface', str(INTERFACE), '--output', 'o']
    assert parse_arguments(given).settings.safe == 'none'
    assert parse_arguments([*given, '--safe', 'barrier']).settings.safe == 'barrier'
