"""The filter against scipy's, its delay as stated, and what it refuses."""

import numpy as np
import pytest

from liquid_policy.low_pass import LowPass


@pytest.mark.parametrize('cutoff', [5.0, 20.0, 45.0])
def test_it_equals_scipys_butterworth(cutoff):
    signal = pytest.importorskip('scipy.signal')
    samples = np.random.default_rng(0).normal(size=(300, 3)) + 2.0
    sections = signal.butter(2, cutoff, fs=100.0, output='sos')
    start = signal.sosfilt_zi(sections)[..., None] * samples[0]
    wanted, _ = signal.sosfilt(sections, samples, axis=0, zi=start)
    np.testing.assert_allclose(LowPass(cutoff, 100.0, 3).run(samples), wanted, atol=1e-12)


def test_a_slow_signal_comes_late_by_the_stated_delay():
    """A ramp's output lags by the group delay at frequency zero."""
    low_pass = LowPass(20.0, 1000.0, 1)
    times = np.arange(1000) * 1e-3
    late = times - low_pass.run(times[:, None])[:, 0]
    assert late[-1] == pytest.approx(low_pass.delay, rel=0.01)
    assert low_pass.delay == pytest.approx(0.01125, abs=1e-5)


def test_bad_samples_change_nothing():
    low_pass = LowPass(20.0, 100.0, 2)
    low_pass.step(np.ones(2))
    for bad in (np.ones(3), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match='expected 2 finite'):
            low_pass.step(bad)
    np.testing.assert_allclose(low_pass.step(np.ones(2)), 1.0)
    for cutoff in (0.0, 50.0, float('nan')):
        with pytest.raises(ValueError, match='cutoff'):
            LowPass(cutoff, 100.0, 2)
