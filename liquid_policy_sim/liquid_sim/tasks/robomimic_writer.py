"""
Writing demonstrations in robomimic's layout: one hdf5 file, a group for every episode.

https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from liquid_trainer.formats.hdf5_file import h5py_module


class RobomimicWriter:
    """
    Write episodes one after the other; the file has its name only when it is complete.

    :param path: of the file.
    :param environment: robomimic's `env_args`: the world's name, version and options.
    :param about: what else the file says of itself.
    :raises FileExistsError: if it is there already.
    :raises FormatError: without h5py.
    """

    def __init__(self, path: Path, environment: Mapping[str, Any], about: Mapping[str, Any]):
        self._path = Path(path)
        if self._path.exists():
            raise FileExistsError(f'{path}: expected a new file, came one that is there; give '
                                  'another --output')
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._beside = self._path.with_name(f'.{self._path.name}.{os.getpid()}.part')
        self._file = h5py_module().File(self._beside, 'w')
        self._data = self._file.create_group('data')
        self._data.attrs['env_args'] = json.dumps(dict(environment), indent=1)
        self._data.attrs.update(about)
        self.episodes, self.steps = 0, 0

    def add(self, observations: Mapping[str, np.ndarray], actions: np.ndarray,
            states: np.ndarray) -> None:
        """
        Write an episode that succeeded.

        :param observations: by name, seen before each action and after the last,
            `(steps + 1, numbers)`.
        :param actions: `(steps, numbers)`.
        :param states: the simulator's before each action, `(steps, numbers)`.
        """
        steps = len(actions)
        group = self._data.create_group(f'demo_{self.episodes}')
        group.attrs.update({'num_samples': steps, 'outcome': 'success'})
        done = np.zeros(steps, np.int64)
        done[-1] = 1
        for name, values in {'actions': actions, 'states': states, 'dones': done,
                             'rewards': done.astype(np.float64)}.items():
            group.create_dataset(name, data=values)
        for name, values in observations.items():
            group.create_dataset(f'obs/{name}', data=values[:-1])
            group.create_dataset(f'next_obs/{name}', data=values[1:])
        self.episodes += 1
        self.steps += steps

    def close(self) -> Path:
        """Finish the file and return its path."""
        self._data.attrs['total'] = self.steps
        self._file.close()
        os.replace(self._beside, self._path)
        return self._path

    def drop(self) -> None:
        """Give up: nothing is left behind."""
        self._file.close()
        self._beside.unlink(missing_ok=True)
