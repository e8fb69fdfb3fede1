"""A small data set with known numbers: two cameras, two groups of joints, irregular times."""

import numpy as np

from liquid_trainer.formats.dataset import (
    NANOSECONDS,
    Dataset,
    Demonstration,
    Feature,
    Layout,
    Picture,
)

RATE = 20.0
LAYOUT = Layout(
    'tester', RATE,
    (Feature('state', ('shoulder', 'elbow', 'wrist.turn'), ('rad', 'rad', '1')),
     Feature('force', ('push', 'pull'), ('N', 'N'))),
    Feature('action', ('shoulder', 'elbow', 'wrist.turn', 'grip'), ('rad', 'rad', '1', '1')),
    (Picture('front', 32, 48), Picture('distance', 32, 48, depth=True)))
LENGTHS = (12, 7, 9)
OUTCOMES = ('success', 'failure', 'success')


def episode(number, length=None):
    """Return an episode of random numbers and smooth pictures, the same every time."""
    length = LENGTHS[number] if length is None else length
    rng = np.random.default_rng(number)
    # Steps come up to a fifth of a period too late, never twice at once.
    jitter = rng.integers(0, NANOSECONDS // 100, length)
    stamps = (1_700_000_000 + 100 * number) * NANOSECONDS + jitter + (
        np.arange(length) * (NANOSECONDS / RATE)).astype(np.int64)
    frames = pictures(length, rng.uniform(0, 255, 3))
    depths = rng.uniform(0.2, 2.5, (length, 32, 48)).astype(np.float32)
    return Demonstration(
        f'try_{number}', stamps,
        {'state': rng.normal(size=(length, 3)).astype(np.float32),
         'force': rng.normal(size=(length, 2)).astype(np.float32)},
        rng.normal(size=(length, 4)).astype(np.float32),
        {'front': lambda: iter(frames), 'distance': lambda: iter(depths)},
        f'task {number % 2}', OUTCOMES[number])


def pictures(length, color):
    """Return smooth pictures that move, uint8 `(length, 32, 48, 3)`: video keeps those well."""
    rows, columns = np.mgrid[0:32, 0:48]
    wave = np.stack([np.sin((columns + 7 * step) / 9) * np.cos(rows / 7)
                     for step in range(length)])
    return np.clip(color + 40 * wave[..., None], 0, 255).astype(np.uint8)


def dataset():
    """Return three episodes."""
    return Dataset('small', LAYOUT, tuple(f'try_{n}' for n in range(3)), episode)


def same(one, other, images=True):
    """Assert that two episodes hold exactly the same."""
    assert (one.task, one.outcome) == (other.task, other.outcome)
    np.testing.assert_array_equal(one.stamps, other.stamps)
    np.testing.assert_array_equal(one.actions, other.actions)
    assert set(one.vectors) == set(other.vectors)
    for name, values in one.vectors.items():
        np.testing.assert_array_equal(values, other.vectors[name])
    if images:
        assert set(one.frames) == set(other.frames)
        for name, frames in one.frames.items():
            np.testing.assert_array_equal(np.stack(list(frames())),
                                          np.stack(list(other.frames[name]())))
