"""The pick-place episode that a person recorded with robosuite, where it is at hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
np = pytest.importorskip('numpy')
pytest.importorskip('h5py', reason="robosuite's files need h5py")

from recordings import recording  # noqa: E402

from liquid_trainer.formats.robomimic import read_robomimic  # noqa: E402

FOLDER = recording('robosuite_human_demos')


@pytest.mark.skipif(FOLDER is None, reason=(
    "robosuite's bundled demonstrations are not here: take robosuite/models/assets/demonstrations "
    'of its version 1.0 to $LIQUID_DATA/robosuite_human_demos/v1.0'))
def test_the_recorded_pick_place_episode_ends_with_the_can_in_its_place():
    data = read_robomimic(FOLDER / 'v1.0' / 'pick-place' / 'panda' / 'demo.hdf5', rate=20.0)
    assert len(data) == 1 and data.layout.rate == 20.0
    episode = data[0]
    states = episode.vectors['states']
    assert states.shape == (1482, 71) and episode.actions.shape == (1482, 7)
    assert np.abs(episode.actions).max() <= 1.0
    # After time come nine joints of arm and fingers, then milk, bread, cereal and can.
    can = states[:, 1 + 9 + 3 * 7:1 + 9 + 3 * 7 + 3]
    # It begins in the first bin, which ends at y = 0, and ends in its quarter of the second.
    assert can[0, 1] < 0.0
    x, y, z = can[-1]
    assert 0.1 < x < 0.1 + 0.39 / 2 and 0.28 < y < 0.28 + 0.49 / 2 and 0.8 < z < 0.9
