"""Diffusion Policy's zarr and robomimic's hdf5: there and back, and what is refused."""

import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from small_dataset import LAYOUT, dataset, episode, same

from liquid_trainer.formats.dataset import FormatError
from liquid_trainer.formats.diffusion_policy import read_diffusion_policy
from liquid_trainer.formats.diffusion_policy_writer import write_diffusion_policy
from liquid_trainer.formats.robomimic import read_robomimic
from liquid_trainer.formats.robomimic_writer import write_robomimic
from liquid_trainer.formats.zarr_arrays import Store, ZarrArray, ZarrError


@pytest.mark.parametrize('name', ['small.zarr', 'small.zarr.zip'])
def test_zarr_keeps_everything(tmp_path, name):
    assert write_diffusion_policy(tmp_path / name, LAYOUT, dataset()) == 3
    assert [file.name for file in tmp_path.iterdir()] == [name]
    back = read_diffusion_policy(tmp_path / name, ['state', 'force'], ['front', 'distance'])
    assert back.layout == LAYOUT and back.names == ('try_0', 'try_1', 'try_2')
    for number, found in enumerate(back):
        same(found, episode(number))


def test_robomimic_keeps_everything(tmp_path):
    pytest.importorskip('h5py')
    assert write_robomimic(tmp_path / 'small.hdf5', LAYOUT, dataset()) == 3
    back = read_robomimic(tmp_path / 'small.hdf5',
                          ['state', 'force', 'front_image', 'distance_depth'])
    assert back.layout.observations == LAYOUT.observations
    assert (back.layout.robot, back.layout.rate) == (LAYOUT.robot, LAYOUT.rate)
    for number, found in enumerate(back):
        assert found.name == f'try_{number}'
        named = {'front': found.frames['front_image'], 'distance': found.frames['distance_depth']}
        same(replace(found, frames=named), episode(number))


def test_robomimic_gets_what_its_loader_asks_for(tmp_path):
    h5py = pytest.importorskip('h5py')
    write_robomimic(tmp_path / 'small.hdf5', LAYOUT, dataset())
    with h5py.File(tmp_path / 'small.hdf5') as file:
        assert file['data'].attrs['total'] == 28
        made = json.loads(file['data'].attrs['env_args'])
        assert made['env_kwargs']['control_freq'] == 20.0
        for number, demo in enumerate(file['data'].values()):
            assert demo.attrs['num_samples'] == len(demo['actions'])
            np.testing.assert_array_equal(demo['next_obs/state'][:-1], demo['obs/state'][1:])
            assert demo['dones'][-1] == 1 and demo['dones'][:-1].sum() == 0
            assert demo['rewards'][-1] == (number != 1)     # the second one failed


def test_arrays_come_from_zarr_by_episode(tmp_path):
    write_diffusion_policy(tmp_path / 'a.zarr', LAYOUT, dataset())
    arrays = read_diffusion_policy(tmp_path / 'a.zarr', ['force']).arrays()
    assert list(arrays.ends) == [12, 19, 28] and arrays.vectors.shape == (28, 2)


def test_published_images_are_floats_and_key_points_are_laid_side_by_side(tmp_path):
    write_diffusion_policy(tmp_path / 'a.zarr', LAYOUT, dataset())
    data = tmp_path / 'a.zarr' / 'data'
    whole = ZarrArray(Store(tmp_path / 'a.zarr'), 'data/front').rows()
    shutil.rmtree(data / 'front')
    _plain(data / 'img', whole.astype('<f4'))
    _plain(data / 'keypoint', np.arange(28 * 6, dtype='<f4').reshape(28, 3, 2))
    found = read_diffusion_policy(tmp_path / 'a.zarr', ['keypoint'], ['img'])[1]
    np.testing.assert_array_equal(np.stack(list(found.frames['img']())),
                                  np.stack(list(episode(1).frames['front']())))
    np.testing.assert_array_equal(found.vectors['keypoint'],
                                  np.arange(12 * 6, 19 * 6).reshape(7, 6))


def _plain(folder, values, chunks=None):
    """Write an array without compression, in chunks of any shape."""
    folder.mkdir()
    chunks = chunks or (5, *values.shape[1:])
    (folder / '.zarray').write_text(json.dumps({
        'zarr_format': 2, 'shape': values.shape, 'chunks': chunks, 'dtype': values.dtype.str,
        'compressor': None, 'fill_value': 0, 'order': 'C', 'filters': None}))
    for place in np.ndindex(*(-(-n // c) for n, c in zip(values.shape, chunks, strict=True))):
        cut = values[tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, chunks, strict=True))]
        whole = np.zeros(chunks, values.dtype)
        whole[tuple(slice(0, n) for n in cut.shape)] = cut
        (folder / '.'.join(map(str, place))).write_bytes(whole.tobytes())


def test_any_part_of_an_array_in_chunks_of_any_shape_is_read(tmp_path):
    values = np.arange(11 * 7 * 3, dtype='<i4').reshape(11, 7, 3)
    _plain(tmp_path / 'a', values, (4, 3, 2))
    array = ZarrArray(Store(tmp_path / 'a'), '')
    for start in range(11):
        for end in range(start, 12):
            np.testing.assert_array_equal(array.rows(start, end), values[start:end])
    (tmp_path / 'a' / '1.0.0').unlink()      # left out: nothing but the fill value
    assert (array.rows()[4:8, :3, :2] == 0).all()


def _without(name):
    return lambda folder: shutil.rmtree(folder / name)


def _ends(values):
    def change(folder):
        shutil.rmtree(folder / 'meta' / 'episode_ends')
        _plain(folder / 'meta' / 'episode_ends', np.array(values, '<i8'))
    return change


def _nan(folder):
    values = ZarrArray(Store(folder), 'data/state').rows()
    values[13, 1] = np.nan
    shutil.rmtree(folder / 'data' / 'state')
    _plain(folder / 'data' / 'state', values)


def _short(folder):
    shutil.rmtree(folder / 'data' / 'force')
    _plain(folder / 'data' / 'force', np.ones((27, 2), '<f4'))


@pytest.mark.parametrize('change, text', [
    (_without('data/action'), 'expected the arrays data/action and meta/episode_ends'),
    (_without('meta/episode_ends'), 'expected the arrays data/action and meta/episode_ends'),
    (_ends([12, 12, 28]), 'episode_ends: expected growing numbers of steps'),
    (_short, 'data/force: expected 28 rows, as episode_ends says, came 27'),
    (_nan, 'state: expected finite numbers, came nan of state_1 at step 1'),
    (lambda folder: (folder / 'data/state/0.0').write_bytes(b'x'), 'expected a whole chunk'),
    (lambda folder: (folder / 'data/state/.zarray').write_text('{'), 'expected a zarr array'),
])
def test_bad_zarr_is_refused(tmp_path, change, text):
    write_diffusion_policy(tmp_path / 'a.zarr', LAYOUT, dataset())
    change(tmp_path / 'a.zarr')
    with pytest.raises(FormatError, match=text):
        list(read_diffusion_policy(tmp_path / 'a.zarr'))


def test_unknown_names_compression_and_files_are_refused(tmp_path):
    write_diffusion_policy(tmp_path / 'a.zarr', LAYOUT, dataset())
    with pytest.raises(FormatError, match=r"of \['force', 'state'\], came \['pose'\]"):
        read_diffusion_policy(tmp_path / 'a.zarr', ['pose'])
    description = tmp_path / 'a.zarr' / 'data' / 'state' / '.zarray'
    description.write_text(description.read_text().replace('blosc', 'imagecodecs_jpegxl'))
    with pytest.raises(ZarrError, match='expected a compression that numcodecs knows'):
        read_diffusion_policy(tmp_path / 'a.zarr')
    with pytest.raises(ZarrError, match='came nothing of this name'):
        read_diffusion_policy(tmp_path / 'b.zarr')


def test_a_zip_file_cut_off_is_refused_and_one_with_a_folder_in_it_is_read(tmp_path):
    write_diffusion_policy(tmp_path / 'a.zarr', LAYOUT, dataset())
    with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as packed:
        for file in (tmp_path / 'a.zarr').rglob('*'):
            packed.write(file, file.relative_to(tmp_path))
    assert len(read_diffusion_policy(tmp_path / 'b.zip')) == 3
    content = (tmp_path / 'b.zip').read_bytes()
    (tmp_path / 'b.zip').write_bytes(content[:-100])
    with pytest.raises(ZarrError, match='expected a whole zip file'):
        read_diffusion_policy(tmp_path / 'b.zip')


@pytest.mark.parametrize('write, name', [(write_robomimic, 'a.hdf5'),
                                         (write_diffusion_policy, 'a.zarr')])
def test_writers_leave_nothing_behind_when_they_fail(tmp_path, write, name):
    pytest.importorskip('h5py')
    bad = replace(episode(1), actions=np.full((7, 4), np.inf, np.float32))
    for episodes, text in (([episode(0), bad], 'try_1: action: expected finite'),
                           ([], 'at least one episode'),
                           ([replace(episode(0), frames=episode(1).frames)],
                            'front: expected 12 images, one per step, came 7')):
        with pytest.raises(FormatError, match=text):
            write(tmp_path / name, LAYOUT, iter(episodes))
        assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    with pytest.raises(FormatError, match='came one that exists'):
        write(tmp_path / name, LAYOUT, dataset())
