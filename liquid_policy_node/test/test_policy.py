"""The policy as a whole: scaling, one step, settings from and to plain text."""

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.policy import Policy, Scaling  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CoreSettings,
    EncoderSettings,
    PolicySettings,
    SettingsError,
)


def test_scaling_survives_outliers_and_resting_dimensions():
    rng = np.random.default_rng(0)
    samples = np.stack((rng.normal(3.0, 2.0, 10000), np.zeros(10000)), 1)
    samples[:20, 0] = 1e6           # a sensor that fails now and then
    scaling = Scaling(2)
    scaling.fit(samples, np.array([0.01, 0.05]))
    assert scaling.center[0].item() == pytest.approx(3.0, abs=0.2)
    # The 2nd and 98th percentile of a Gaussian are 2.05 sigma from its middle.
    assert scaling.scale[0].item() == pytest.approx(2.05, abs=0.15)
    assert scaling.scale[1].item() == pytest.approx(0.05)


def test_scaling_inverts_itself_and_ignores_nan():
    samples = np.random.default_rng(1).normal(size=(100, 3))
    scaling = Scaling(3)
    scaling.fit(samples)
    with_nan = np.concatenate((samples, np.full((50, 3), np.nan)))
    other = Scaling(3)
    other.fit(with_nan)
    assert torch.equal(scaling.center, other.center)
    x = torch.randn(5, 3)
    assert torch.allclose(scaling.inverse(scaling(x)), x, atol=1e-6)


def test_scaling_refuses_what_it_cannot_scale():
    with pytest.raises(ValueError, match='dimension 1 has no finite sample'):
        Scaling(2).fit(np.array([[1.0, np.nan], [2.0, np.nan]]))
    with pytest.raises(ValueError, match=r'expected samples of shape \(count, 2\)'):
        Scaling(2).fit(np.zeros((4, 3)))


def test_step_is_in_physical_units():
    torch.manual_seed(0)
    policy = Policy().eval()
    observation, elapsed = torch.randn(2, 140), torch.full((2, 1), 0.01)
    with torch.no_grad():
        state, plain = policy.step(observation, elapsed, policy.initial_state(2))
        policy.action_scaling.center.fill_(3.0)
        policy.action_scaling.scale.fill_(2.0)
        policy.target_scaling.scale.fill_(0.5)
        again, scaled = policy.step(observation, elapsed, policy.initial_state(2))
    assert torch.equal(state, again)
    assert plain.mixture.means.shape == (2, 5, 16, 9)
    assert torch.allclose(scaled.mixture.means, plain.mixture.means * 2 + 3, atol=1e-6)
    assert torch.allclose(scaled.mixture.scales, plain.mixture.scales * 2, atol=1e-6)
    assert torch.allclose(scaled.estimate_scale, plain.estimate_scale * 0.5, atol=1e-6)
    assert torch.allclose(plain.mixture.weights.sum(1), torch.ones(2), atol=1e-6)


def test_broken_sensor_cannot_throw_the_state_away():
    policy = Policy().eval()
    with torch.no_grad():
        state, _ = policy.step(torch.full((1, 140), 1e12), torch.full((1, 1), 0.01),
                               policy.initial_state())
    assert torch.isfinite(state).all()


def test_settings_survive_plain_text():
    settings = PolicySettings(target_size=2, core=CoreSettings(kind='lstm', units=32))
    assert PolicySettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize('make, text', [
    (lambda: PolicySettings.from_dict({'speed': 1}), "unknown setting 'speed'"),
    (lambda: PolicySettings.from_dict({'core': {'kind': 'rnn'}}), "core.kind.*'rnn'"),
    (lambda: PolicySettings.from_dict({'core': 3}), 'expected a mapping'),
    (lambda: PolicySettings(action_size=0), 'action_size'),
    (lambda: EncoderSettings(height=100), 'multiple of 32'),
    (lambda: EncoderSettings(points=50), 'encoder.points'),
])
def test_bad_settings_are_refused(make, text):
    with pytest.raises(SettingsError, match=text):
        make()
