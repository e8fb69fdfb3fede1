"""What a fleet's robots and server read and write: the checkpoint, a robot's bags, the result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liquid_policy.checkpoint import Checkpoint, load_checkpoint
from liquid_policy.export import to_checkpoint, to_policy
from liquid_policy.policy import Policy
from liquid_trainer.cache import cached_episodes
from liquid_trainer.fleet import FleetError, FleetMember, FleetSettings, take_weights
from liquid_trainer.learner import encode_images
from liquid_trainer.windows import Demonstrations, split_episodes


def load_start(values: Mapping[str, Any]) -> tuple[Policy, Checkpoint]:
    """
    Return the policy that all robots start from.

    :param values: `checkpoint`: its path; `fresh`: core and heads begin untrained, as when the
        checkpoint gives no more than an encoder; `seed`.
    """
    loaded = load_checkpoint(Path(str(values['checkpoint'])))
    policy = to_policy(loaded)
    if values.get('fresh'):
        torch.manual_seed(int(values.get('seed', 0)))
        untrained = Policy(policy.settings).state_dict()
        policy.load_state_dict({name: value for name, value in untrained.items()
                                if name.startswith(('core.', 'head.', 'estimate.'))},
                               strict=False)
    return policy, loaded


def load_member(values: Mapping[str, Any], settings: FleetSettings) -> FleetMember:
    """
    Return the robot that has some bags.

    :param values: those of `load_start`, and `bags`: paths, a space between two; `cache`: folder
        for decoded bags and features; `held_out`: share of the episodes.
    :raises FleetError: if no bags are named, or there is only one episode.
    """
    if not values.get('bags'):
        raise FleetError("bags: expected the paths of this robot's bags, came none; give "
                         "--node-config 'bags=\"recordings/a recordings/b\"'")
    policy, loaded = load_start(values)
    cache = Path(str(values.get('cache', 'runs/cache')))
    episodes = cached_episodes(str(values['bags']).split(), loaded.interface, cache, 1)
    learned, held = split_episodes(episodes.demonstrations, float(values.get('held_out', 0.2)),
                                   settings.seed)
    if not held:
        raise FleetError(f'bags: expected two episodes or more, and held_out above 0 to score on, '
                         f'came {len(episodes)} and {values.get("held_out", 0.2)}')
    tick = 1.0 / loaded.interface.rate
    data, kept = (Demonstrations(episodes.chosen(numbers), tick, cache)
                  for numbers in (learned, held))
    return FleetMember(policy, data, _features(policy, data, cache), kept,
                       _features(policy, kept, cache), loaded.interface.target_units, settings)


def _features(policy: Policy, data: Demonstrations, cache: Path) -> np.ndarray:
    """Return the features of all images, encoded once for an encoder and kept beside the bags."""
    if policy.encoder is None:
        return np.zeros((1, 0), np.float32)     # one row that every tick may point to
    digest = hashlib.blake2b(repr([data.names, data.image_bounds.tolist()]).encode(),
                             digest_size=12)
    digest.update(data.vectors.tobytes())
    for value in policy.encoder.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    path = cache / f'features_{digest.hexdigest()}.npy'
    if not path.exists():
        beside = path.with_name(f'.{path.name}.part.npy')
        np.save(beside, encode_images(policy, data))
        beside.replace(path)
    return np.load(path, mmap_mode='r')


def write_checkpoint(policy: Policy, loaded: Checkpoint, weights: Mapping[str, np.ndarray],
                     folder: Path, card: dict[str, Any]) -> Path:
    """
    Write what a fleet has learned, with the run-time form, and return the path.

    :param loaded: what it started from.
    :param card: for the model card: how it was learned.
    """
    take_weights(policy, weights)
    policy.eval()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'checkpoint.safetensors'
    to_checkpoint(policy, loaded.interface, f'{loaded.version}-fleet',
                  {'fleet': card, 'started_from': loaded.version}).save(path)
    return path
