"""Everything a policy is, in one safetensors file: weights, settings, interface, exported form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from liquid_policy.files import write_atomically
from liquid_policy.interface import Interface, InterfaceError, parse_interface

FORMAT = 'liquid_policy/1'
_EXPORT = 'export/'
_WEIGHT = 'weight/'


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the text says what was expected, what came, what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """
    A policy that can be run, trained further, and told apart from others.

    :param version: short text that names this model, for example a date and a digest.
    :param settings: `PolicySettings.to_dict()`.
    :param interface: the robot it was trained for.
    :param card: model card: data, seed, commit, figures; plain numbers and texts.
    :param weights: the torch policy's state, by name.
    :param exports: files by name: `encoder.onnx` (with images), `step.onnx`, `observe.onnx`.
    """

    version: str
    settings: dict[str, Any]
    interface: Interface
    card: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    exports: dict[str, bytes] = field(default_factory=dict)

    def save(self, path: str | Path) -> str:
        """
        Write the file beside its place, then rename it there.

        :return: the file's SHA-256, as hexadecimal digits.
        """
        path = Path(path)
        tensors = {_WEIGHT + name: np.asarray(value, order='C')
                   for name, value in self.weights.items()}
        tensors |= {_EXPORT + name: np.frombuffer(value, dtype=np.uint8)
                    for name, value in self.exports.items()}
        data = save(tensors, {
            'format': FORMAT,
            'version': self.version,
            'settings': json.dumps(self.settings),
            'interface': self.interface.to_yaml(),
            'card': json.dumps(self.card),
            'digest': _digest(tensors),
        })
        write_atomically(path, data)
        return hashlib.sha256(data).hexdigest()

    def export(self, name: str) -> bytes:
        """
        Return an exported file.

        :raises CheckpointError: if the checkpoint has none of that name.
        """
        if name not in self.exports:
            raise CheckpointError(
                f'checkpoint {self.version!r}: expected the exported file {name!r}, came '
                f'{sorted(self.exports) or "none"}; export it with the train command')
        return self.exports[name]


def file_digest(path: str | Path) -> str:
    """Return a file's SHA-256, as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_checkpoint(path: str | Path, sha256: str = '') -> Checkpoint:
    """
    Read a checkpoint; nothing in it is executed.

    :param path: a file written by `Checkpoint.save`.
    :param sha256: the digest the file must have; empty: do not check.
    :raises CheckpointError: if the file is missing, truncated, damaged, a pickle, of another
        version, or not the one the digest names.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f'{path}: expected a readable checkpoint, came: {error.strerror}; '
                              'check the path') from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
        raise CheckpointError(
            f'{path}: expected SHA-256 {sha256.lower()}, came '
            f'{hashlib.sha256(data).hexdigest()}; the file was changed or is another model')
    _refuse_other_kinds(path, data)
    meta = _metadata(path, data)
    if meta.get('format') != FORMAT:
        raise CheckpointError(f'{path}: expected format {FORMAT!r}, came '
                              f'{meta.get("format")!r}; train it again with this version')
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f'{path}: expected whole tensors, came: {error}; the file is '
                              'truncated or damaged, copy it again') from error
    if _digest(tensors) != meta.get('digest'):
        raise CheckpointError(f'{path}: expected tensors of digest {meta.get("digest")}, came '
                              f'{_digest(tensors)}; the file is damaged, copy it again')
    try:
        return Checkpoint(
            version=meta['version'],
            settings=json.loads(meta['settings']),
            interface=parse_interface(meta['interface']),
            card=json.loads(meta['card']),
            weights=_named(tensors, _WEIGHT),
            exports={name: value.tobytes() for name, value in _named(tensors, _EXPORT).items()})
    except (KeyError, json.JSONDecodeError, InterfaceError) as error:
        raise CheckpointError(f'{path}: expected version, settings, interface and card, came: '
                              f'{error}; train it again with this version') from error


def _refuse_other_kinds(path: Path, data: bytes) -> None:
    # The first bytes of safetensors are a length, which may begin like any other file.
    if data[8:9] != b'{' and (data[:1] == b'\x80' or data[:4] == b'PK\x03\x04'):
        raise CheckpointError(f'{path}: expected safetensors, came a pickle or zip (torch.save?); '
                              'pickles can run code and are never read: save it as a checkpoint')
    if len(data) < 8:
        raise CheckpointError(f'{path}: expected safetensors, came {len(data)} bytes; the file '
                              'is truncated, copy it again')
    header = int.from_bytes(data[:8], 'little')
    if data[8:9] != b'{' or header > len(data):
        what = 'a truncated file' if data[8:9] == b'{' else 'something else'
        raise CheckpointError(f'{path}: expected safetensors, came {what} of {len(data)} bytes; '
                              'copy it again')


def _metadata(path: Path, data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], 'little')
    try:
        header = json.loads(data[8:8 + size])
    except ValueError as error:
        raise CheckpointError(f'{path}: expected a safetensors header, came: {error}; the file '
                              'is damaged, copy it again') from error
    return header.get('__metadata__', {})


def _named(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items()
            if name.startswith(prefix)}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return a digest over names, types, shapes and bytes; safetensors itself has none."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order='C')
        digest.update(f'{name} {value.dtype} {value.shape}'.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def encoder_identity(checkpoint: Checkpoint) -> str:
    """
    What tells encoders apart: a digest of the exported form.

    Two checkpoints that share an encoder share this, so a new core needs no new encoder.
    """
    return hashlib.sha256(checkpoint.export('encoder.onnx')).hexdigest()[:16]
