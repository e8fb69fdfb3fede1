"""
Writing demonstrations in Minari's layout, as Farama publishes those of D4RL.

A data set is a folder `NAME/data` with `main_data.hdf5`, a group for every episode, and
`metadata.json`. An episode has one observation more than it has actions: the last one is what
came of it (https://minari.farama.org/content/dataset_standards).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquid_trainer.formats.hdf5_file import h5py_module

_DATA, _META = 'main_data.hdf5', 'metadata.json'


@dataclass(frozen=True, eq=False)
class MinariEpisode:
    """
    One episode.

    :param observations: by name, each `(steps + 1, numbers)`.
    :param actions: `(steps, numbers)`.
    :param success: whether the task was done at its end.
    :param seed: that the world was started with.
    """

    observations: Mapping[str, np.ndarray]
    actions: np.ndarray
    success: bool = True
    seed: int = 0


class MinariWriter:
    """
    Write episodes one after the other.

    A data set that is being written has no metadata yet, so that nobody takes half for whole.

    :param folder: `metadata.json` and `main_data.hdf5` go into its folder `data`.
    :param about: what `metadata.json` says besides the counts.
    :raises FileExistsError: if there is a data set already.
    :raises FormatError: without h5py.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self._folder, self._about = Path(folder) / 'data', dict(about)
        if (self._folder / _META).exists():
            raise FileExistsError(f'{folder}: expected a new folder, came one with a data set; '
                                  'give another --output')
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = h5py_module().File(self._folder / _DATA, 'w')
        self.episodes, self.steps = 0, 0

    def add(self, episode: MinariEpisode) -> None:
        """Write an episode."""
        steps = len(episode.actions)
        group = self._file.create_group(f'episode_{self.episodes}')
        group.attrs.update({'id': self.episodes, 'total_steps': steps, 'seed': episode.seed})
        for name, values in episode.observations.items():
            group.create_dataset(f'observations/{name}', data=values)
        done = np.zeros(steps, bool)
        done[-1] = True
        group.create_dataset('actions', data=episode.actions)
        group.create_dataset('rewards', data=(done & episode.success).astype(np.float64))
        group.create_dataset('terminations', data=np.zeros(steps, bool))
        # As in the published files: the world goes on, the episode is cut where the goal is.
        group.create_dataset('truncations', data=done)
        group.create_dataset('infos/success', data=np.append(False, done & episode.success))
        self.episodes += 1
        self.steps += steps

    def close(self) -> Path:
        """Finish the data set and return its folder."""
        self._file.close()
        beside = self._folder / f'.{_META}.part'
        beside.write_text(json.dumps({
            'total_episodes': self.episodes, 'total_steps': self.steps, 'data_format': 'hdf5',
            'jpeg_encoding': False, **self._about}, indent=1) + '\n')
        os.replace(beside, self._folder / _META)
        return self._folder.parent
