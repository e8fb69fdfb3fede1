"""A small world with a known answer: a coloured square on a table, and a hand that follows it."""

import numpy as np

from liquid_trainer.cache import StoredEpisode, store_depth

SIZE = 96


def render(positions, rng):
    """
    Return pictures of a square seen from 1 m above, and their depths [m].

    :param positions: of the square's middle [m], within +-0.4, `(n, 2)`.
    """
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    # One metre away, the picture shows from -0.5 to 0.5 m.
    x = (columns + 0.5) / SIZE - 0.5
    y = (rows + 0.5) / SIZE - 0.5
    colors = np.empty((len(positions), SIZE, SIZE, 3), np.uint8)
    depths = np.empty((len(positions), SIZE, SIZE), np.float32)
    ground, paint = rng.integers(40, 120, 3), rng.integers(150, 255, 3)
    for index, (left, top) in enumerate(positions):
        # Edges half covered by the square are blended: a camera sees parts of pixels.
        cover = np.clip((0.06 - np.maximum(abs(x - left), abs(y - top))) * SIZE + 0.5, 0, 1)
        colors[index] = ground + cover[..., None] * (paint - ground)
        depths[index] = np.where(cover > 0.5, 0.9, 1.0)
    return colors, depths


def follow_episode(number, seed=0, seconds=2.0, bimodal=False):
    """
    Return an episode of a hand that follows the square; every second time round the other way.

    Ticks come at 100 Hz, images at 30 Hz. The vector is the hand's position and three zeros; the
    action is its velocity, the third number of the action always 0. Targets are the square's
    position (x, y, 0.1) and its speed along x.
    """
    rng = np.random.default_rng((seed, number))
    times = np.arange(int(seconds * 100)) / 100
    start, speed = rng.uniform(-0.3, 0.0, 2), rng.uniform(0.05, 0.2)
    square = start + times[:, None] * [speed, 0.0]
    sign = 1.0 if not bimodal or number % 2 else -1.0
    hand = np.empty_like(square)
    velocity = np.empty_like(square)
    place = rng.uniform(-0.3, 0.3, 2)
    for tick, goal in enumerate(square):
        hand[tick] = place
        velocity[tick] = np.clip(4.0 * sign * (goal - place), -1.0, 1.0)
        place = place + 0.01 * velocity[tick]
    stamps = np.arange(0.0, times[-1], 1 / 30)
    colors, depths = render(start + stamps[:, None] * [speed, 0.0], rng)
    zeros = np.zeros((len(times), 1))
    return StoredEpisode(
        name=f'episode_{number}', times=times,
        vectors=np.hstack((hand, zeros, zeros, zeros)).astype(np.float32),
        image_index=np.searchsorted(stamps, times - 0.02 + 1e-9, side='right') - 1,
        image_times=stamps, colors=colors, depths=store_depth(depths),
        actions=np.hstack((velocity, zeros)).astype(np.float32),
        targets=np.hstack((square, zeros + 0.1, zeros + speed)).astype(np.float32))
