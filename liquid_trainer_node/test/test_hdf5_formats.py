"""Readers of robomimic, robosuite, Minari and D4RL files."""

import json

import numpy as np
import pytest

from liquid_trainer.arrays import ArrayError
from liquid_trainer.formats.dataset import FormatError
from liquid_trainer.formats.minari import read_d4rl, read_minari
from liquid_trainer.formats.robomimic import read_robomimic

h5py = pytest.importorskip('h5py')
RANDOM = np.random.default_rng(0)


def _robomimic(path, lengths=(4, 3, 5), images=False):
    """Write a file as robomimic publishes it, and return the actions by episode."""
    written = {}
    with h5py.File(path, 'w') as file:
        data = file.create_group('data')
        data.attrs['env_args'] = json.dumps({
            'env_name': 'PickPlaceCan', 'type': 1,
            'env_kwargs': {'control_freq': 20, 'robots': ['Panda']}})
        for index, length in enumerate(lengths):
            demo = data.create_group(f'demo_{9 + index}')     # 9, 10, 11: not in text order
            demo.attrs['num_samples'] = length
            written[f'demo_{9 + index}'] = actions = RANDOM.normal(size=(length, 7))
            demo['actions'] = actions
            demo['rewards'], demo['states'] = np.zeros(length), np.zeros((length, 5))
            demo['obs/robot0_eef_pos'] = actions[:, :3] + 10
            demo['obs/object'] = actions[:, :2] + 100
            demo['next_obs/object'] = actions[:, :2] + 200
            if images:
                demo['obs/agentview_image'] = RANDOM.integers(0, 255, (length, 6, 8, 3), np.uint8)
        file['mask/train'] = np.array([b'demo_11', b'demo_9'])
    return written


def test_robomimic_episodes_come_in_the_order_of_their_numbers(tmp_path):
    written = _robomimic(tmp_path / 'low_dim.hdf5')
    dataset = read_robomimic(tmp_path / 'low_dim.hdf5')
    assert dataset.names == ('demo_9', 'demo_10', 'demo_11')
    assert (dataset.layout.robot, dataset.layout.rate) == ('Panda', 20.0)
    for episode in dataset:
        np.testing.assert_array_equal(episode.actions, written[episode.name])
        np.testing.assert_array_equal(np.diff(episode.stamps), 50_000_000)


def test_robomimic_becomes_arrays_of_the_chosen_observations(tmp_path):
    written = _robomimic(tmp_path / 'low_dim.hdf5')
    arrays = read_robomimic(tmp_path / 'low_dim.hdf5', ['object', 'robot0_eef_pos']).arrays()
    actions = np.concatenate(list(written.values()))
    np.testing.assert_array_equal(arrays.ends, [4, 7, 12])
    np.testing.assert_array_equal(arrays.actions, actions.astype(np.float32))
    np.testing.assert_array_equal(arrays.vectors, np.concatenate(
        (actions[:, :2] + 100, actions[:, :3] + 10), 1).astype(np.float32))


def test_robomimic_mask_and_images(tmp_path):
    _robomimic(tmp_path / 'image.hdf5', images=True)
    dataset = read_robomimic(tmp_path / 'image.hdf5', mask='train')
    assert dataset.names == ('demo_9', 'demo_11')
    (picture,) = dataset.layout.pictures
    assert (picture.name, picture.height, picture.width) == ('agentview_image', 6, 8)
    frames = np.stack(list(dataset[1].frames['agentview_image']()))
    with h5py.File(tmp_path / 'image.hdf5') as file:
        np.testing.assert_array_equal(frames, file['data/demo_11/obs/agentview_image'])


def test_robosuite_recording_without_observations_gives_states(tmp_path):
    with h5py.File(tmp_path / 'demo.hdf5', 'w') as file:
        file.create_group('data').attrs['env_info'] = json.dumps({'robots': 'Panda'})
        file['data/demo_1/states'] = np.arange(12.0).reshape(4, 3)
        file['data/demo_1/actions'] = np.arange(8.0).reshape(4, 2)
    dataset = read_robomimic(tmp_path / 'demo.hdf5')
    assert dataset.layout.robot == 'Panda' and dataset.layout.rate is None
    np.testing.assert_array_equal(dataset.arrays().vectors, np.arange(12.0).reshape(4, 3))


@pytest.mark.parametrize('change, options, text', [
    (lambda f: f.__delitem__('data/demo_10/actions'), {}, "expected an array 'actions', came"),
    (lambda f: f.__delitem__('data/demo_10/obs/object'), {},
     r"expected the observations \['object'\] of the first episode"),
    (lambda f: f.__delitem__('data'), {}, "expected a group 'data', came"),
    (lambda f: f['data/demo_10/obs/object'].__setitem__((2, 1), np.nan), {},
     r'object: expected finite numbers, came nan of object_1 at step 2 \(1 in all\)'),
    (lambda f: None, {'observations': ['objekt']},
     r"observations of .*object.*, came \['objekt'\]"),
    (lambda f: None, {'mask': 'tests'}, r"expected a mask of \['train'\], came 'tests'"),
])
def test_bad_robomimic_file_is_refused(tmp_path, change, options, text):
    _robomimic(tmp_path / 'bad.hdf5')
    with h5py.File(tmp_path / 'bad.hdf5', 'a') as file:
        change(file)
    with pytest.raises(FormatError, match=text):
        list(read_robomimic(tmp_path / 'bad.hdf5', **options))


def test_unequal_lengths_are_refused(tmp_path):
    _robomimic(tmp_path / 'bad.hdf5')
    with h5py.File(tmp_path / 'bad.hdf5', 'a') as file:
        del file['data/demo_9/actions']
        file['data/demo_9/actions'] = np.zeros((9, 7))
    with pytest.raises(FormatError, match=r'demo_9: .*expected shape \(9, 2\).*, came \(4, 2\)'):
        list(read_robomimic(tmp_path / 'bad.hdf5'))


def test_missing_and_cut_off_files_are_refused(tmp_path):
    with pytest.raises(FormatError, match='expected an hdf5 file, came nothing of this name'):
        read_robomimic(tmp_path / 'none.hdf5')
    _robomimic(tmp_path / 'cut.hdf5')
    content = (tmp_path / 'cut.hdf5').read_bytes()
    (tmp_path / 'cut.hdf5').write_bytes(content[:len(content) // 2])
    with pytest.raises(FormatError, match='expected a whole hdf5 file, came: .*truncated'):
        read_robomimic(tmp_path / 'cut.hdf5')


def test_minari_leaves_out_the_observation_nobody_acted_on(tmp_path):
    path = tmp_path / 'maze' / 'data' / 'main_data.hdf5'
    path.parent.mkdir(parents=True)
    with h5py.File(path, 'w') as file:
        for index, length in ((0, 3), (10, 4), (2, 2)):
            part = file.create_group(f'episode_{index}')
            part['actions'] = np.full((length, 2), index + RANDOM.random((length, 2)), np.float32)
            part['observations/observation'] = RANDOM.random((length + 1, 4))
            part['observations/desired_goal'] = RANDOM.random((length + 1, 2))
            part['infos/success'] = np.arange(length + 1) == (length if index else -1)
        last = np.asarray(file['episode_2/observations/desired_goal'])
    dataset = read_minari(tmp_path / 'maze', ['observation', 'desired_goal'])
    assert dataset.names == ('episode_0', 'episode_2', 'episode_10')
    assert [episode.outcome for episode in dataset] == ['failure', 'success', 'success']
    np.testing.assert_array_equal(dataset[1].vectors['desired_goal'], last[:-1])
    arrays = dataset.arrays()
    assert arrays.vectors.shape == (9, 6) and list(arrays.ends) == [3, 5, 9]
    with pytest.raises(FormatError, match=r"observations of \['desired_goal', 'observation'\]"):
        read_minari(path, ['goal'])


def test_plain_minari_observations_and_wrong_counts(tmp_path):
    with h5py.File(tmp_path / 'main_data.hdf5', 'w') as file:
        file['episode_0/actions'] = np.arange(3.0)
        file['episode_0/observations'] = np.arange(8.0).reshape(4, 2)
        file['episode_1/actions'] = np.arange(3.0)
        file['episode_1/observations'] = np.arange(6.0).reshape(3, 2)
    dataset = read_minari(tmp_path)
    np.testing.assert_array_equal(dataset[0].actions, [[0], [1], [2]])
    with pytest.raises(FormatError, match='expected 4 observations, one more than .*, came 3'):
        dataset[1]


def _d4rl(path, **arrays):
    with h5py.File(path, 'w') as file:
        for name, values in arrays.items():
            file[name.replace('__', '/')] = values


def test_d4rl_ends_at_terminals_and_timeouts(tmp_path):
    observations = RANDOM.random((9, 4), np.float32)
    _d4rl(tmp_path / 'maze.hdf5', observations=observations, actions=observations[:, :2],
          terminals=np.arange(9) == 2, timeouts=np.arange(9) == 6, infos__goal=observations[:, 2:])
    dataset = read_d4rl(tmp_path / 'maze.hdf5', ['observations', 'infos/goal'])
    arrays = dataset.arrays()
    assert list(arrays.ends) == [3, 7, 9]
    np.testing.assert_array_equal(arrays.vectors, np.concatenate(
        (observations, observations[:, 2:]), 1))
    assert [part.name for part in read_d4rl(tmp_path / 'maze.hdf5').layout.observations] == [
        'observations']


def test_d4rl_without_ends_or_with_unequal_lengths_is_refused(tmp_path):
    _d4rl(tmp_path / 'a.hdf5', observations=np.ones((4, 2)), actions=np.ones((4, 2)),
          terminals=np.zeros(4))
    with pytest.raises(FormatError, match='terminals or timeouts that mark where episodes end'):
        read_d4rl(tmp_path / 'a.hdf5')
    _d4rl(tmp_path / 'b.hdf5', observations=np.ones((3, 2)), actions=np.ones((4, 2)),
          terminals=np.ones(4))
    with pytest.raises(FormatError, match='expected 4 observations, one per action, came 3'):
        read_d4rl(tmp_path / 'b.hdf5')


def test_a_column_that_never_changes_is_named_when_arrays_are_made(tmp_path):
    _d4rl(tmp_path / 'a.hdf5', observations=np.ones((4, 2)), actions=RANDOM.random((4, 2)),
          terminals=np.arange(4) == 3)
    with pytest.raises(ArrayError, match='came 1 throughout column 0'):
        read_d4rl(tmp_path / 'a.hdf5').arrays()
