"""Learning on a small world with a known answer, and the laws of the learner."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).parent))

from synthetic import follow_episode, render  # noqa: E402

from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CoreSettings,
    EncoderSettings,
    MixtureSettings,
    PolicySettings,
)
from liquid_trainer.augment import augment_images  # noqa: E402
from liquid_trainer.learner import (  # noqa: E402
    FrameHead,
    Learner,
    encode_images,
    fit_feature_scaling,
    fit_scaling,
)
from liquid_trainer.scores import frame_scores, held_out_scores  # noqa: E402
from liquid_trainer.settings import LearningSettings  # noqa: E402
from liquid_trainer.windows import Demonstrations  # noqa: E402

ACTION_UNITS, TARGET_UNITS = ('m/s', 'm/s', 'm/s'), ('m', 'm', 'm', 'm/s')


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_policy(core='cfc'):
    torch.manual_seed(0)
    return Policy(PolicySettings(
        vector_size=5, action_size=3, target_size=4, encoder=EncoderSettings(width=0.25),
        core=CoreSettings(kind=core, units=24),
        head=MixtureSettings(components=3, horizon=8, hidden=32)))


@pytest.fixture(scope='module')
def episodes():
    return [follow_episode(number, bimodal=True) for number in range(24)]


def test_single_images_teach_the_position(episodes):
    data, held = Demonstrations(episodes[:20]), Demonstrations(episodes[20:])
    policy = small_policy()
    fit_scaling(policy, data, ACTION_UNITS, TARGET_UNITS)
    learner = Learner(policy, data, LearningSettings(frame_batch=16, average=0.9), (0, 1, 2))
    for step in range(110):
        learner.step(step / 110)
    learner.finish()
    scores = frame_scores(policy, learner.frame_head, held, encode_images(policy, held),
                          TARGET_UNITS)
    # Positions spread over 0.4 m; a pixel is 10 mm. 1,760 images must do.
    assert scores['frame_position_error'] < 0.04, scores


@pytest.fixture(scope='module')
def core_learner(episodes):
    """A learner whose features are the square's true position: no encoder to wait for."""
    data = Demonstrations(episodes[:20])
    policy = small_policy()
    fit_scaling(policy, data, ACTION_UNITS, TARGET_UNITS)
    learner = Learner(policy, data, LearningSettings(
        core_batch=16, core_window=0.5, drop_image=0.0, steps=(0, 1, 0)), (0, 1, 2))
    learner.features = _true_features(data)
    fit_feature_scaling(policy, learner.features)
    learner.begin('core')
    return learner


def _true_features(data):
    features = np.zeros((data.image_count, 128), np.float32)
    features[data.frame_images, :2] = data.targets[data.frame_stamped, :2]
    return features


def test_windows_teach_what_to_do_and_both_ways_of_it(core_learner, episodes):
    learner, steps = core_learner, 300
    held = Demonstrations(episodes[20:])
    features = _true_features(held)
    before = held_out_scores(learner.policy, held, features, TARGET_UNITS)
    for step in range(steps):
        learner.step(step / steps)
    learner.finish()
    after = held_out_scores(learner.policy, held, features, TARGET_UNITS)
    assert after['nll'] < before['nll'] - 1.0
    assert after['position_error'] < 0.02
    assert after['effective_components'] > 1.5
    # 95 % if the estimate knew itself exactly; 20 episodes make it a little sure of itself.
    assert 0.6 < after['coverage'] <= 1.0


def test_resting_action_does_not_dominate(core_learner):
    # The third action is always 0; its scale has a floor, so its error counts no more than the
    # others': one floor of 0.05 m/s is one unit.
    assert core_learner.policy.action_scaling.scale[2].item() == pytest.approx(0.05)


def test_missed_ticks_keep_the_whole_time(core_learner):
    elapsed = np.full((6, 50), 0.01, np.float32)
    core_learner._rng = np.random.default_rng(1)
    times, mask = core_learner._missed_ticks(elapsed, np.ones((6, 50), bool))
    assert (~mask).any() and mask[:, -1].any()
    for row, kept in zip(times, mask, strict=True):
        last = np.flatnonzero(kept)[-1]
        assert row[kept].sum() == pytest.approx(0.01 * (last + 1), abs=1e-5)


def test_lost_image_leaves_the_one_before_it(core_learner):
    images = np.repeat(np.arange(10, 40), 3)[None].repeat(4, 0)
    core_learner._rng = np.random.default_rng(0)
    core_learner.settings.__dict__['drop_image'] = 0.3
    held = core_learner._held_images(images, np.zeros(4, bool))
    core_learner.settings.__dict__['drop_image'] = 0.0
    assert np.all(held <= images) and np.all(np.diff(held, axis=1) >= 0)
    assert 0.1 < (held < images).mean() < 0.6


def test_joint_stage_moves_the_encoder_but_not_its_statistics(episodes):
    policy = small_policy()
    data = Demonstrations(episodes[:4])
    fit_scaling(policy, data, ACTION_UNITS, TARGET_UNITS)
    learner = Learner(policy, data, LearningSettings(joint_batch=2, joint_window=0.2))
    learner.begin('joint')
    before = {name: value.clone() for name, value in policy.encoder.state_dict().items()}
    values = learner.step(0.5)
    after = policy.encoder.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert 'features.0.0.weight' in moved and 'pooled.weight' in moved
    assert not any('running' in name for name in moved)
    assert np.isfinite(values['loss'])


def test_bad_batch_is_left_out(episodes):
    policy = small_policy()
    data = Demonstrations(episodes[:2])
    fit_scaling(policy, data, ACTION_UNITS, TARGET_UNITS)
    learner = Learner(policy, data, LearningSettings(core_batch=2, core_window=0.2))
    learner.features = np.full((data.image_count, 128), np.nan, np.float32)
    learner.begin('core')
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    learner.step(0.5)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_features_are_needed_for_the_core_stage(episodes):
    policy = small_policy()
    data = Demonstrations(episodes[:2])
    fit_scaling(policy, data, ACTION_UNITS, TARGET_UNITS)
    learner = Learner(policy, data, LearningSettings(core_batch=2))
    learner.begin('core')
    with pytest.raises(ValueError, match='encode_images first'):
        learner.step(0.0)
    with pytest.raises(ValueError, match="expected one of.*'other'"):
        learner.begin('other')


def test_learning_rate_warms_up_and_falls(episodes):
    policy = small_policy()
    data = Demonstrations(episodes[:2])
    fit_scaling(policy, data, ACTION_UNITS, TARGET_UNITS)
    learner = Learner(policy, data, LearningSettings(warm_up=0.1))
    rates = [learner._schedule(share) for share in (0.0, 0.05, 0.1, 0.55, 1.0, 1.2)]
    assert rates == pytest.approx([0.05, 0.525, 1.0, 0.505, 0.01, 0.01], abs=1e-6)


def test_hint_rewards_looking_at_the_part():
    head = FrameHead(128, 5, 4, 3, (0, 1, 2))
    with torch.no_grad():
        head.camera.weight.copy_(torch.eye(3))
        head.camera.bias.zero_()
    head.reach.fill_(0.01)
    cells = torch.rand(2, 3, 576) * 0.4 + 0.5
    targets = torch.cat((cells[:, :, 100], torch.zeros(2, 1)), 1)
    right, wrong = torch.zeros(2, 1, 576), torch.zeros(2, 1, 576)
    right[..., 100], wrong[..., 300] = 1.0, 1.0
    good = head.look(right, cells, targets, torch.ones(4))
    assert good.item() == pytest.approx(0.0, abs=1e-3)
    assert head.look(wrong, cells, targets, torch.ones(4)) > good + 0.5
    unknown = torch.full((2, 4), float('nan'))
    assert head.look(wrong, cells, unknown, torch.ones(4)).item() == 0.0


def test_augmented_images_stay_images_and_are_repeatable():
    colors, depths = render(np.array([[0.0, 0.1], [0.2, -0.2]]), np.random.default_rng(0))
    given = torch.from_numpy(colors), torch.from_numpy(depths)
    color, depth = augment_images(*given, torch.Generator().manual_seed(3))
    again = augment_images(*given, torch.Generator().manual_seed(3))
    assert torch.equal(color, again[0]) and torch.equal(depth, again[1])
    assert color.min() >= 0 and color.max() <= 255 and depth.min() >= 0
    measured = depth > 0
    assert measured.float().mean() > 0.9
    # Millimetres must survive: noise of 0.4 % and an offset of 0.2 % at most.
    assert (depth - given[1])[measured].abs().max() < 0.03


@pytest.mark.parametrize('change, text', [
    ({'minutes': (1.0, 2.0)}, 'minutes: expected 3 numbers'),
    ({'minutes': (0.0, 0.0, 0.0)}, 'minutes'),
    ({'steps': (-1, 2, 3)}, 'steps'),
    ({'threads': 0}, 'threads: expected at least 1, came 0'),
    ({'drop_tick': 1.0}, 'drop_tick'),
    ({'core_rate': 0.0}, 'core_rate: expected above 0'),
])
def test_bad_settings_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        LearningSettings(**change)
