"""The commands import_dataset and export_dataset: from one format to any other through bags."""

from dataclasses import replace

import numpy as np
import pytest
from small_dataset import LAYOUT, dataset, episode, same

from liquid_policy.interface import load_interface
from liquid_trainer.export_dataset import main as export_main
from liquid_trainer.formats.bag_episodes import read_bags
from liquid_trainer.formats.dataset import FormatError
from liquid_trainer.formats.diffusion_policy import read_diffusion_policy
from liquid_trainer.formats.diffusion_policy_writer import write_diffusion_policy
from liquid_trainer.formats.robomimic import read_robomimic
from liquid_trainer.import_dataset import find_format, main, open_dataset

KEEP = ['--keep-size', '--quiet']


@pytest.fixture
def zarr(tmp_path):
    write_diffusion_policy(tmp_path / 'small.zarr', LAYOUT, dataset())
    return tmp_path / 'small.zarr'


def test_describes_without_writing(zarr, capsys):
    assert main([str(zarr)]) == 0
    text = capsys.readouterr().out
    assert '3 episodes of tester at 20 Hz' in text
    assert 'observation state: shoulder [rad], elbow [rad], wrist.turn [1]' in text
    assert 'image distance: 48x32, depth' in text
    assert sorted(p.name for p in zarr.parent.iterdir()) == ['small.zarr']


def test_there_and_back_by_the_commands(zarr, tmp_path, capsys):
    bags = tmp_path / 'bags'
    assert main([str(zarr), '--output', str(bags), '--images', 'front', *KEEP]) == 0
    assert f'3 bags in {bags}; now: train --bags {bags}' in capsys.readouterr().out
    given = [str(bags), '--interface', str(bags / 'interface.yaml'), '--quiet']
    assert export_main([*given, '--format', 'diffusion_policy', '--output',
                        str(tmp_path / 'again.zarr.zip')]) == 0
    assert export_main([*given, '--format', 'robomimic', '--output',
                        str(tmp_path / 'again.hdf5')]) == 0
    pictures = read_diffusion_policy(tmp_path / 'again.zarr.zip', ['state', 'force'])
    numbers = read_robomimic(tmp_path / 'again.hdf5', ['state', 'force', 'front_image'])
    for number in range(3):
        wanted = replace(episode(number), frames={'front': episode(number).frames['front']})
        same(pictures[number], wanted)
        found = numbers[number]
        same(replace(found, frames={'front': found.frames['front_image']}), wanted)


@pytest.mark.parametrize('kind', ['lerobot', 'lerobot_v2.1'])
def test_lerobot_there_and_back_by_the_commands(zarr, tmp_path, kind):
    pytest.importorskip('pyarrow', reason='docker/requirements-formats.txt is not installed')
    bags, again = tmp_path / 'bags', tmp_path / 'again'
    main([str(zarr), '--output', str(bags), '--images', 'front', *KEEP])
    interface = bags / 'interface.yaml'
    assert export_main([str(bags), '--interface', str(interface), '--quiet', '--format', kind,
                        '--images', 'png', '--output', str(tmp_path / 'lerobot')]) == 0
    # The interface of the robot that was exported finds all its numbers again.
    assert main([str(tmp_path / 'lerobot'), '--interface', str(interface), '--output', str(again),
                 *KEEP]) == 0
    for number, found in enumerate(read_bags([again], load_interface(interface))):
        same(found, replace(episode(number), frames={'front': episode(number).frames['front']}))


def test_chosen_episodes_numbers_units_and_size(zarr, tmp_path):
    assert main([str(zarr), '--output', str(tmp_path / 'bags'), '--episodes', '2', '0',
                 '--observations', 'force', '--images', 'front', '--size', '32', '64',
                 '--unit', 'force/*=N m', '--quiet']) == 0
    interface = load_interface(tmp_path / 'bags' / 'interface.yaml')
    assert interface.vector_names == ('push', 'pull')
    assert interface.vector_units == ('N m', 'N m')
    assert (interface.images['front'].height, interface.images['front'].width) == (32, 64)
    found = list(read_bags([tmp_path / 'bags'], interface))
    assert [e.name for e in found] == ['try_0', 'try_2']
    np.testing.assert_array_equal(found[1].vectors['force'], episode(2).vectors['force'])


def test_formats_are_told_apart(zarr, tmp_path):
    h5py = pytest.importorskip('h5py')
    assert find_format(zarr) == 'diffusion_policy'
    (tmp_path / 'lerobot' / 'meta').mkdir(parents=True)
    (tmp_path / 'lerobot' / 'meta' / 'info.json').write_text('{}')
    assert find_format(tmp_path / 'lerobot') == 'lerobot'
    for name, content, kind in (('a.hdf5', 'data/demo_0/actions', 'robomimic'),
                                ('b.hdf5', 'actions', 'd4rl'),
                                ('maze/data/main_data.hdf5', 'episode_0/actions', 'minari')):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(tmp_path / name, 'w') as file:
            file[content] = np.zeros((2, 2))
        assert find_format(tmp_path / name) == kind
    assert find_format(tmp_path / 'maze') == 'minari'
    with pytest.raises(FormatError, match=r'expected a LeRobot folder .* came another folder'):
        find_format(tmp_path)
    with pytest.raises(FormatError, match='expected a format of'):
        open_dataset(zarr, 'rlds')


def test_minari_is_imported_at_the_rate_that_is_given(tmp_path, capsys):
    h5py = pytest.importorskip('h5py')
    with h5py.File(tmp_path / 'main_data.hdf5', 'w') as file:
        file['episode_0/actions'] = np.random.default_rng(0).normal(size=(5, 2))
        file['episode_0/observations'] = np.arange(12.0).reshape(6, 2)
    given = [str(tmp_path / 'main_data.hdf5'), '--output', str(tmp_path / 'bags'), '--quiet']
    assert main(given) == 1
    assert 'expected steps per second, came none in the data set; give --rate' in (
        capsys.readouterr().err)
    assert main([*given, '--rate', '50']) == 0
    (found,) = read_bags([tmp_path / 'bags'], load_interface(tmp_path / 'bags/interface.yaml'))
    np.testing.assert_array_equal(np.diff(found.stamps), 20_000_000)
    np.testing.assert_array_equal(found.vectors['observations'], np.arange(10).reshape(5, 2))


def test_missing_files_are_named_or_left_out(zarr, tmp_path, capsys):
    pytest.importorskip('pyarrow', reason='docker/requirements-formats.txt is not installed')
    from liquid_trainer.formats.lerobot_writer import LeRobotSettings, write_lerobot
    write_lerobot(tmp_path / 'lerobot', LAYOUT, dataset(), LeRobotSettings('v2.1', 'png'))
    (tmp_path / 'lerobot/data/chunk-000/episode_000001.parquet').unlink()
    given = [str(tmp_path / 'lerobot'), '--output', str(tmp_path / 'bags'), *KEEP]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert 'episode_000001.parquet: expected a parquet file, came nothing' in error
    assert '(--skip-missing)' in error and not (tmp_path / 'bags').exists()
    assert main([*given, '--skip-missing']) == 0
    assert '1 of 3 episodes left out, because files are missing' in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / 'bags').iterdir()) == [
        'episode_000000', 'episode_000002', 'interface.yaml']


@pytest.mark.parametrize('extra, text', [
    (['--unit', 'state=degrees'], r"expected units of .*came \['degrees'\]"),
    (['--unit', 'pose=rad'], r"came \['pose'\]"),
    (['--observations', 'pose'], r"came \['pose'\]"),
    (['--images', 'top'], r"expected images of \['distance', 'front'\], came \['top'\]"),
    (['--episodes', '7'], 'expected episodes from 0 to 2, came 7'),
    (['--camera', 'top'], r"expected a camera of .*came 'top'"),
])
def test_unknown_names_are_refused_with_what_there_is(zarr, tmp_path, capsys, extra, text):
    import re
    assert main([str(zarr), '--output', str(tmp_path / 'bags'), *KEEP, *extra]) == 1
    assert re.search(text, capsys.readouterr().err)
    assert not (tmp_path / 'bags').exists()


def test_export_says_what_is_wrong(zarr, tmp_path, capsys):
    main([str(zarr), '--output', str(tmp_path / 'bags'), *KEEP])
    given = [str(tmp_path / 'bags'), '--interface', str(tmp_path / 'bags' / 'interface.yaml'),
             '--quiet', '--format', 'robomimic', '--output']
    (tmp_path / 'there.hdf5').write_text('')
    assert export_main([*given, str(tmp_path / 'there.hdf5')]) == 1
    assert 'came one that exists' in capsys.readouterr().err
    assert export_main([*given, str(tmp_path / 'a.hdf5'), '--every', '0']) == 1
    assert 'expected to take one of 1 or more ticks, came 0' in capsys.readouterr().err
