"""Learning to see: errors fall, the encoder rests where it should, bad pictures are refused."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.features import Encoder  # noqa: E402
from liquid_policy.settings import EncoderSettings  # noqa: E402
from liquid_trainer.arrays import ArrayError  # noqa: E402
from liquid_trainer.pictures import Pictures  # noqa: E402
from liquid_trainer.sight import SightLearner, SightSettings, encode  # noqa: E402

SMALL = EncoderSettings(width=0.1, size=16, points=4, merged=8, height=32, width_pixels=32)


def _pictures(count=40, mirrored=True):
    """Return a red square on white, somewhere; its mirror image is upside down."""
    rng = np.random.default_rng(0)
    color = np.full((count, 32, 32, 3), 255, np.uint8)
    corners = rng.integers(0, 24, (count, 2))
    for picture, (row, column) in zip(color, corners, strict=True):
        picture[row:row + 8, column:column + 8] = (255, 0, 0)
    places = corners.astype(np.float64)
    if not mirrored:
        return Pictures(color, places)
    return Pictures(color, places, lambda some: np.ascontiguousarray(some[:, ::-1]),
                    np.stack((24 - places[:, 0], places[:, 1]), 1))


def _learner(pictures, steps):
    torch.manual_seed(0)
    return SightLearner(Encoder(SMALL), pictures, np.arange(32),
                        SightSettings(steps=steps, batch=8, rate=0.01))


def test_the_error_falls():
    learner = _learner(_pictures(), steps=60)
    losses = [learner.step() for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
    assert learner.error(np.arange(32)) < 4.5       # one that always says the middle: 6


def test_the_same_seed_teaches_the_same_and_statistics_rest_at_the_end():
    first, second = _learner(_pictures(), steps=5), _learner(_pictures(), steps=5)
    assert [first.step() for _ in range(3)] == [second.step() for _ in range(3)]
    norm = first.encoder.features[0][1]
    before = norm.running_mean.clone()
    first.step()
    first.step()
    torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)


def test_features_of_many_pictures_are_those_of_each_one():
    pictures = _pictures(mirrored=False)
    encoder = Encoder(SMALL)
    together = encode(encoder, pictures.color, batch=16)
    assert together.shape == (40, 16) and together.dtype == np.float32
    alone = np.concatenate([encode(encoder, pictures.color[i:i + 1]) for i in range(0, 40, 9)])
    np.testing.assert_allclose(alone, together[::9], atol=1e-5)


def test_near_features_are_the_tanh_of_what_is_told_of_places():
    near = (np.array([[0.5, 0.0], [0.0, 0.2], [1.0, -1.0]]), np.array([-6.0, -2.4, 0.25]))
    pictures = replace(_pictures(), near=near)
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, size=19, near=3))
    learner = SightLearner(encoder, pictures, np.arange(32),
                           SightSettings(steps=5, batch=8, rate=0.01))
    for _ in range(5):
        learner.step()
    learner.finish()
    features = encode(encoder, pictures.color[:6])
    assert features.shape == (6, 19)
    with torch.inference_mode():
        told = learner.scaling.inverse(learner.places(torch.from_numpy(features[:, :16]))).numpy()
    np.testing.assert_allclose(features[:, 16:], np.tanh(told @ near[0].T + near[1]), atol=1e-4)
    assert np.ptp(features[:, 16:], axis=0).min() > 1e-6
    with pytest.raises(ValueError, match=r'encoder\.near: expected 3 for these pictures, came 0'):
        SightLearner(Encoder(SMALL), pictures, np.arange(32), learner.settings)
    with pytest.raises(ArrayError, match=r'near: expected a matrix \(3, 2\), came \(3, 3\)'):
        replace(pictures, near=(np.eye(3), near[1]))


@pytest.mark.parametrize('change, text', [
    (lambda c, p: (c.astype(np.float32), p), 'expected uint8'),
    (lambda c, p: (c[..., :1], p), 'height, width, 3'),
    (lambda c, p: (c, p[:-1]), r'places: expected \(40, 2\)'),
    (lambda c, p: (c, np.where(p == p[3], np.nan, p)), 'finite')])
def test_bad_pictures_are_refused(change, text):
    made = _pictures(mirrored=False)
    with pytest.raises(ArrayError, match=text):
        Pictures(*change(made.color, made.places))
    with pytest.raises(ArrayError, match='came None'):
        Pictures(made.color, made.places, lambda some: some)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r'sight\.steps: expected at least 1, came 0'):
        SightSettings(steps=0)
    with pytest.raises(ValueError, match='rate above 0'):
        SightSettings(rate=0.0)
