"""Array demonstrations: bad ones are refused, windows stay within their episode."""

import numpy as np
import pytest

from liquid_trainer.arrays import ArrayEpisodes, ArrayError


def _episodes(lengths=(3, 2, 4)):
    count = sum(lengths)
    vectors = np.arange(count, dtype=np.float64)[:, None] * [1.0, 10.0]
    return ArrayEpisodes(vectors, -vectors[:, :1], np.cumsum(lengths))


def test_windows_stay_within_their_episode():
    vectors, seen, actions, inside = _episodes().windows(np.array([3, 4, 8]), context=2, horizon=3)
    np.testing.assert_array_equal(vectors[..., 0], [[3, 3], [3, 4], [7, 8]])
    np.testing.assert_array_equal(seen, [[False, True], [True, True], [True, True]])
    np.testing.assert_array_equal(actions[..., 0], [[-3, -4, -4], [-4, -4, -4], [-8, -8, -8]])
    np.testing.assert_array_equal(inside, [[True, True, False], [True, False, False],
                                           [True, False, False]])


def test_split_is_by_episode_and_repeatable():
    episodes = _episodes((2,) * 20)
    learned, held = episodes.split(0.2, seed=3)
    assert len(held) == 4 and sorted(learned + held) == list(range(20))
    assert episodes.split(0.2, seed=3) == (learned, held) != episodes.split(0.2, seed=4)


def test_chosen_and_joined_keep_episodes_whole():
    episodes = _episodes()
    chosen = episodes.chosen([2, 0])
    np.testing.assert_array_equal(chosen.vectors[:, 0], [5, 6, 7, 8, 0, 1, 2])
    np.testing.assert_array_equal(chosen.ends, [4, 7])
    both = chosen.joined(episodes)
    assert len(both) == 5 and both.ends[-1] == len(both.vectors) == 16


def _changed(**changes):
    good = _episodes()
    values = {'vectors': good.vectors.astype(np.float64), 'actions': good.actions,
              'ends': good.ends}
    return {**values, **{name: change(values[name].copy()) for name, change in changes.items()}}


def _set(index, value):
    def change(array):
        array[index] = value
        return array
    return change


@pytest.mark.parametrize('changes, text', [
    ({'vectors': _set((4, 1), np.nan)}, 'vectors: expected finite numbers, came nan at step 4, '
                                        'column 1'),
    ({'actions': _set((0, 0), np.inf)}, 'actions: expected finite numbers, came inf'),
    ({'vectors': _set((slice(None), 1), 7.0)}, 'expected every column to change, came 7 '
                                               'throughout column 1'),
    ({'vectors': lambda a: a.astype(np.int64)}, 'expected floating-point numbers, came int64'),
    ({'vectors': lambda a: a.astype(object)}, 'expected floating-point numbers, came object'),
    ({'vectors': lambda a: a[:, 0]}, r'expected shape \(steps, numbers\), came \(9,\)'),
    ({'vectors': lambda a: a[:0]}, r'expected shape \(steps, numbers\), came \(0, 2\)'),
    ({'actions': lambda a: a[:-1]}, 'expected as many actions as vectors, came 8'),
    ({'ends': lambda a: np.array([3, 4, 9])}, 'episode 1: expected two steps or more, came 1'),
    ({'ends': lambda a: np.array([5, 3, 9])}, 'episode 1: expected two steps or more, came -2'),
    ({'ends': lambda a: np.array([3, 5, 8])}, 'expected the last to be 9'),
    ({'ends': lambda a: a.astype(float)}, 'ends: expected whole numbers'),
])
def test_bad_demonstrations_are_refused(changes, text):
    with pytest.raises(ArrayError, match=text):
        ArrayEpisodes(**_changed(**changes))


def test_windows_leave_out_what_was_lost():
    vectors = np.arange(20.0)[:, None] * [1.0, -1.0]
    data = ArrayEpisodes(vectors, vectors, np.array([10, 20]))
    found, inside, _, _ = data.windows(np.array([8, 12]), 3, 1, np.array([[2, 1], [1, 4]]))
    assert found[0, :, 0].tolist() == [5.0, 7.0, 8.0] and inside[0].all()
    # 12 - 4 lies in the episode before: the own episode's first step stands in, marked.
    assert found[1, :, 0].tolist() == [10.0, 10.0, 12.0]
    assert inside[1].tolist() == [False, False, True]
