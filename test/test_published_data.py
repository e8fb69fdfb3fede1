"""Data sets that others have published, where they are at hand, have the numbers they should."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from recordings import recording  # noqa: E402

from liquid_trainer.formats.diffusion_policy import read_diffusion_policy  # noqa: E402
from liquid_trainer.formats.lerobot import read_lerobot  # noqa: E402
from liquid_trainer.formats.robomimic import read_robomimic  # noqa: E402
from liquid_trainer.formats.video import MissingFileError  # noqa: E402


def folder(name):
    """Return a recording's folder, or skip the test."""
    found = recording(name)
    if found is None:
        pytest.skip(f'{name} is missing; docs/formats.md and docs/tasks.md say where to get it')
    return found


def test_a_real_robots_lerobot_data_set():
    path = folder('g1_inspire_bottle')
    pytest.importorskip('pyarrow', reason='docker/requirements-formats.txt is not installed')
    dataset = read_lerobot(path, images=[])
    assert (len(dataset), dataset.layout.rate) == (100, 30.0)
    (state,) = dataset.layout.observations
    assert state.names == dataset.layout.action.names and state.size == 26
    assert state.names[10] == 'kRightElbow'
    lengths = [len(dataset[number]) for number in range(0, 100, 20)]
    assert lengths[0] == 479 and sum(lengths) < 35_965
    first = dataset[0]
    assert first.task == 'Pick up the yellow bottle on the table.'
    # The first episode's statistics, as its authors computed them.
    np.testing.assert_allclose(first.vectors['observation.state'].min(0)[:2],
                               [-0.7725270986557007, 0.3451097309589386])


def test_its_videos_have_a_frame_for_every_step():
    path = folder('g1_inspire_bottle')
    pytest.importorskip('pyarrow', reason='docker/requirements-formats.txt is not installed')
    pytest.importorskip('av', reason='docker/requirements-formats.txt is not installed')
    dataset = read_lerobot(path)
    frames = dataset[29].frames['observation.images.cam_high']()
    shapes = {frame.shape for frame in itertools.islice(frames, 220)}
    assert shapes == {(480, 640, 3)}
    assert len(list(frames)) == len(dataset[29]) - 220 == 1
    with pytest.raises(MissingFileError, match='episode_000000.mp4'):
        dataset[0]


def test_push_t_equals_its_copy_without_images():
    path = folder('pusht_human')
    arrays = read_diffusion_policy(path / 'pusht_cchi_v7_replay.zarr', ['state'], []).arrays()
    with np.load(path / 'pusht_cchi_v7_lowdim.npz') as copy:
        np.testing.assert_array_equal(arrays.vectors, copy['state'])
        np.testing.assert_array_equal(arrays.actions, copy['action'])
        np.testing.assert_array_equal(arrays.ends, copy['episode_ends'])


def test_push_t_images_are_those_of_the_episode():
    dataset = read_diffusion_policy(folder('pusht_human') / 'pusht_cchi_v7_replay.zarr',
                                    ['state'], ['img'])
    episode = dataset[3]
    frames = np.stack(list(episode.frames['img']()))
    assert frames.shape == (len(episode), 96, 96, 3)
    # The tool is drawn blue where the state says it is: 512 pixels of the table are 96 here.
    x, y = (episode.vectors['state'][40, :2] * 96 / 512).astype(int)
    red, _, blue = frames[40, y, x].astype(int)
    assert blue > red + 50


@pytest.mark.parametrize('task, steps, size', [
    ('lift', 412, 32), ('pick-place', 1482, 71), ('nut-assembly', 1036, None),
    ('stack', 532, None), ('door', 261, None), ('wipe', 174, None)])
def test_robosuites_own_recordings(task, steps, size):
    pytest.importorskip('h5py')
    path = folder('robosuite_human_demos') / 'v1.0' / task / 'panda' / 'demo.hdf5'
    (episode,) = read_robomimic(path)
    assert episode.actions.shape == (steps, 6 if task == 'wipe' else 7)
    states = episode.vectors['states']
    assert states.shape[1] == (size or states.shape[1])
    assert (np.diff(states[:, 0]) > 0).all()        # MuJoCo's time comes first
