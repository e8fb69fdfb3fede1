"""A loaded policy: steps by true time, warm starts equal to having run along, clear refusals."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('onnxruntime')

from liquid_policy.checkpoint import CheckpointError, encoder_identity
from liquid_policy.low_pass import CARD
from liquid_policy.stepping import Inputs, Model
from liquid_policy_node.models import load_encoder, load_for

TICK = 10_000_000  # ns


def make_inputs(count, start=0, step=TICK):
    """Random inputs at consecutive ticks."""
    generator = np.random.default_rng(1)
    return [Inputs(start + (index + 1) * step, generator.normal(size=128).astype(np.float32),
                   generator.normal(size=12).astype(np.float32)) for index in range(count)]


@pytest.fixture
def model(untrained):
    """A fresh model."""
    return Model(untrained, 'nowhere')


def test_a_warmed_model_answers_as_one_that_ran_along(model, untrained):
    """Bit for bit, also when part of the window was seen before."""
    window = make_inputs(60)
    for inputs in window[:-1]:
        model.step(inputs)
    other = Model(untrained, 'nowhere')
    assert other.warm(window[:40]) == 40
    assert other.warm(window[:-1]) == 19
    one, two = model.step(window[-1]), other.step(window[-1])
    assert one.elapsed == two.elapsed == pytest.approx(0.01)
    assert one.component == two.component
    np.testing.assert_array_equal(one.chosen, two.chosen)
    np.testing.assert_array_equal(one.distribution.means, two.distribution.means)


def test_a_preview_answers_as_the_tick_will_and_changes_nothing(model, untrained):
    """What comes in between is answered with the next tick's answer; the state does not move."""
    assert model.upcoming(0) is None
    window = make_inputs(30)
    other = Model(untrained, 'nowhere')
    for inputs in window[:-1]:
        model.step(inputs)
        other.step(inputs)
    tick = model.upcoming(window[-2].tick + 1)
    assert tick == window[-1].tick and model.upcoming(tick + 5) == tick + 5
    for change in (1.0, 0.0):       # of two previews only the last sees what the tick will see
        early = model.preview(replace(window[-1], vector=window[-1].vector + np.float32(change)))
    one, two = model.step(window[-1]), other.step(window[-1])
    for later in (two, early):
        assert one.component == later.component and one.elapsed == later.elapsed
        np.testing.assert_array_equal(one.chosen, later.chosen)
        np.testing.assert_array_equal(one.distribution.means, later.distribution.means)


def test_there_is_no_preview_where_the_state_has_to_start_anew(model):
    """After a silence, and for a head whose noise a preview would use up."""
    for inputs in make_inputs(3):
        model.step(inputs)
    assert model.preview(replace(inputs, tick=inputs.tick + 200 * TICK)) is None


def test_there_is_no_preview_behind_a_low_pass_filter(model, untrained):
    """It would have to keep what the preview saw."""
    filtered = Model(replace(untrained, card={**untrained.card, CARD: 20.0}), 'nowhere')
    for inputs in make_inputs(2):
        model.step(inputs)
        filtered.step(inputs)
    assert model.upcoming(0) is not None and filtered.upcoming(0) is None


def test_the_state_starts_anew_after_a_gap_or_when_time_goes_back(model, untrained):
    """The answer is then that of a model that has seen nothing."""
    first = make_inputs(1)[0]
    fresh = Model(untrained, 'nowhere').step(first).distribution.means
    for jump in (-5 * TICK, 150 * TICK):
        for inputs in make_inputs(20):
            model.step(inputs)
        later = replace(first, tick=20 * TICK + jump)
        assert model.elapsed(later.tick) is None
        np.testing.assert_array_equal(model.step(later).distribution.means, fresh)
        model.reset()
    for inputs in make_inputs(20):
        model.step(inputs)
    assert model.step(replace(first, tick=60 * TICK)).elapsed == pytest.approx(0.4)


def test_inputs_that_are_not_finite_leave_the_state(model):
    """The next good step goes on where the last good one was."""
    window = make_inputs(10)
    for inputs in window[:5]:
        model.step(inputs)
    before = model._state.copy()
    with pytest.raises(ValueError, match='vector: expected finite'):
        model.step(replace(window[5], vector=np.full(12, np.nan, np.float32)))
    np.testing.assert_array_equal(model._state, before)
    assert model.step(window[6]).elapsed == pytest.approx(0.02)


def test_a_model_that_answers_nonsense_starts_anew(model):
    """One NaN must not stay in the carried state for ever."""
    window, step = make_inputs(3), model._runtime.step

    def broken(*arguments):
        state, distribution = step(*arguments)
        return np.full_like(state, np.nan), distribution
    model.step(window[0])
    model._runtime.step = broken
    with pytest.raises(ValueError, match='not finite; its state starts anew'):
        model.step(window[1])
    model._runtime.step = step
    assert np.isfinite(model.step(window[2]).chosen).all()


def test_encoders_are_told_apart_by_what_they_compute(untrained, make_checkpoint):
    """Another core keeps the identity, another encoder changes it."""
    one = load_for(untrained.interface, make_checkpoint('one'))
    two = load_for(untrained.interface, make_checkpoint('two', encoder='other'))
    assert encoder_identity(one) == encoder_identity(untrained) != encoder_identity(two)
    encoder = load_encoder(untrained.interface, make_checkpoint('one'))
    assert encoder.identity == encoder_identity(one) and encoder.version == 'one'


def test_a_checkpoint_of_another_robot_is_refused_with_every_difference(
        untrained, make_checkpoint):
    """Two fields differ, both are named."""
    interface = untrained.interface
    imu = replace(interface.observations['imu'], topic='imu/raw')
    other = replace(
        interface, rate=50.0, observations={**interface.observations, 'imu': imu})
    with pytest.raises(CheckpointError, match='(?s)another robot.*rate.*imu') as caught:
        load_for(interface, make_checkpoint('foreign', interface=other))
    assert 'imu/raw' in str(caught.value)


def test_limits_of_the_whole_robot_are_no_matter_to_the_policy(untrained, make_checkpoint):
    """A policy trained before the cell was described runs in it; the safety node enforces it."""
    unlimited = replace(untrained.interface, safety=None)
    path = make_checkpoint('unlimited', interface=unlimited)
    assert load_for(untrained.interface, path).version == load_for(unlimited, path).version


@pytest.mark.parametrize('kind', ['deterministic', 'imle', 'flow', 'diffusion'])
def test_any_head_runs_in_the_policy_node(untrained, kind):
    """A sampling head's samples come out as equally heavy, narrow components."""
    pytest.importorskip('torch')
    from liquid_policy.export import export_observe, export_step, to_policy
    from liquid_policy.head_settings import head_settings
    from liquid_policy.policy import Policy

    small = {'hidden': 16, 'horizon': 4}
    if kind != 'deterministic':
        small |= {'samples': 3, 'network': 'mlp', 'width': 16, 'depth': 1}
    if kind == 'diffusion':
        small |= {'schedule': 'ddim', 'steps': 2}
    settings = replace(to_policy(untrained).settings, head=head_settings({'kind': kind, **small}))
    policy = Policy(settings).eval()
    weights = {name: value.numpy() for name, value in policy.state_dict().items()}
    model = Model(replace(untrained, settings=settings.to_dict(), weights=weights, exports={
        **untrained.exports, 'step.onnx': export_step(policy),
        'observe.onnx': export_observe(policy)}), 'nowhere')
    for inputs in make_inputs(4):
        step = model.step(inputs)
    count = 1 if kind == 'deterministic' else 3
    assert step.distribution.means.shape == (count, 4, 9)
    np.testing.assert_allclose(step.distribution.weights, 1 / count, rtol=1e-6)
    np.testing.assert_allclose(step.distribution.scales, 0.05, rtol=1e-6)
    # The one that goes on with the last plan was chosen, within the actions' ranges.
    np.testing.assert_allclose(step.chosen[:, :6], step.distribution.means[step.component, :, :6])
    assert model.dt == settings.head.dt
