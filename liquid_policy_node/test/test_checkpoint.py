"""The checkpoint file: what goes in comes out; everything else is refused by name."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from liquid_policy.checkpoint import (
    Checkpoint,
    CheckpointError,
    file_digest,
    load_checkpoint,
)
from liquid_policy.interface import load_interface

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'


@pytest.fixture
def checkpoint():
    rng = np.random.default_rng(0)
    return Checkpoint(version='test-1', settings={'core': {'kind': 'cfc'}},
                      interface=load_interface(INTERFACE),
                      card={'seed': 3, 'held_out': {'a': 1.5}},
                      weights={'a': rng.normal(size=(3, 2)).astype(np.float32),
                               'b': np.array(7, np.int64)},
                      exports={'step.onnx': b'\x08\x07onnx'})


def test_what_goes_in_comes_out(checkpoint, tmp_path):
    path = tmp_path / 'deep' / 'a.safetensors'
    digest = checkpoint.save(path)
    assert digest == file_digest(path)
    loaded = load_checkpoint(path, digest)
    assert (loaded.version, loaded.settings, loaded.card) == (
        'test-1', {'core': {'kind': 'cfc'}}, {'seed': 3, 'held_out': {'a': 1.5}})
    assert loaded.interface == checkpoint.interface
    assert loaded.exports == checkpoint.exports
    assert all(np.array_equal(loaded.weights[k], v) for k, v in checkpoint.weights.items())
    assert [file.name for file in path.parent.iterdir()] == ['a.safetensors']


def test_reading_needs_no_torch(checkpoint, tmp_path):
    path = tmp_path / 'a.safetensors'
    checkpoint.save(path)
    code = ('import sys; from liquid_policy.checkpoint import load_checkpoint; '
            'import liquid_policy.runtime; '
            f'load_checkpoint({str(path)!r}); assert "torch" not in sys.modules')
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, '-c', code], check=True, env=environment)


@pytest.mark.parametrize('share', [0.0, 0.001, 0.01, 0.5, 0.99])
def test_truncated_file_is_refused(checkpoint, tmp_path, share):
    path = tmp_path / 'a.safetensors'
    checkpoint.save(path)
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    with pytest.raises(CheckpointError, match='truncated|copy it again'):
        load_checkpoint(path)


def test_every_damaged_byte_is_noticed(checkpoint, tmp_path):
    path = tmp_path / 'a.safetensors'
    checkpoint.save(path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], 'little')
    for place in range(header, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1:])
        with pytest.raises(CheckpointError, match='damaged'):
            load_checkpoint(path)


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path('/tmp/liquid_policy_pickle_was_run'),))


def test_pickle_is_refused_and_never_run(tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(CheckpointError, match='pickle'):
        load_checkpoint(path)
    assert not Path('/tmp/liquid_policy_pickle_was_run').exists()


def test_a_length_that_begins_like_a_pickle_is_none(checkpoint, tmp_path):
    path = tmp_path / 'a.safetensors'
    for note in range(0, 4096, 8):      # the header grows by 8 bytes until its length ends in 80
        checkpoint.card['note'] = 'x' * note
        checkpoint.save(path)
        if path.read_bytes()[:1] == b'\x80':
            break
    assert path.read_bytes()[:1] == b'\x80'
    assert load_checkpoint(path).card['note'] == 'x' * note


def test_zip_of_torch_save_is_refused(tmp_path):
    path = tmp_path / 'a.pt'
    path.write_bytes(b'PK\x03\x04' + bytes(100))
    with pytest.raises(CheckpointError, match='torch.save'):
        load_checkpoint(path)


def test_other_files_and_versions_are_refused(checkpoint, tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(b'#!/bin/sh\necho a long enough text file\n')
    with pytest.raises(CheckpointError, match='expected safetensors, came something else'):
        load_checkpoint(path)
    path.write_bytes(save({'a': np.zeros(2, np.float32)}))
    with pytest.raises(CheckpointError, match="expected format 'liquid_policy/1', came None"):
        load_checkpoint(path)
    path.write_bytes(save({'a': np.zeros(2, np.float32)}, {'format': 'liquid_policy/9'}))
    with pytest.raises(CheckpointError, match="came 'liquid_policy/9'; train it again"):
        load_checkpoint(path)


def test_missing_file_wrong_digest_and_missing_export_are_named(checkpoint, tmp_path):
    path = tmp_path / 'a.safetensors'
    with pytest.raises(CheckpointError, match='No such file'):
        load_checkpoint(path)
    checkpoint.save(path)
    with pytest.raises(CheckpointError, match='expected SHA-256 00'):
        load_checkpoint(path, '00' * 32)
    with pytest.raises(CheckpointError, match="expected the exported file 'encoder.onnx'"):
        checkpoint.export('encoder.onnx')


def test_interface_that_cannot_be_read_is_refused(checkpoint, tmp_path):
    path = tmp_path / 'a.safetensors'
    checkpoint.save(path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + size])
    header['__metadata__']['interface'] = 'robot: 3'
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + size:])
    with pytest.raises(CheckpointError, match='expected version, settings, interface'):
        load_checkpoint(path)
