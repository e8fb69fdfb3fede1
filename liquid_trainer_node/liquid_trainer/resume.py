"""A learner's whole state in one safetensors file, so that a killed training goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from liquid_trainer.learner import Learner


class ResumeError(ValueError):
    """A saved state cannot be gone on from."""


def save_learner(path: str | Path, learner: Learner, extra: dict[str, Any],
                 best: dict[str, torch.Tensor] | None = None) -> None:
    """
    Write weights, averages, optimiser and streams; beside, then renamed.

    :param extra: plain numbers and texts of the caller, given back by `load_learner`.
    :param best: the policy's weights that have scored best, given back by `best_weights`.
    """
    tensors = {f'policy/{k}': v for k, v in learner.policy.state_dict().items()}
    tensors |= {f'average/{k}': v for k, v in learner.average.items()}
    tensors |= {f'frame_head/{k}': v for k, v in learner.frame_head.state_dict().items()}
    tensors |= {f'best/{k}': v for k, v in (best or {}).items()}
    for index, slots in learner.optimizer.state_dict()['state'].items():
        tensors |= {f'optimizer/{index}/{k}': torch.as_tensor(v) for k, v in slots.items()}
    if learner.streams is not None:
        tensors |= {f'streams/{k}': torch.as_tensor(np.asarray(v))
                    for k, v in learner.streams.state().items()}
        tensors['carried'] = learner.carried
    meta = {'stage': learner.stage, 'step': learner.step_count,
            'settings': learner.settings.to_dict(), 'policy': learner.policy.settings.to_dict(),
            'extra': extra}
    path = Path(path)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    save_file({k: v.detach().clone(memory_format=torch.contiguous_format)
               for k, v in tensors.items()}, beside, {'state': json.dumps(meta)})
    os.replace(beside, path)


def read_extra(path: str | Path) -> dict[str, Any]:
    """
    Return what is known about a saved state without its tensors: stage, step, settings, extra.

    :raises ResumeError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, 'pt') as file:
            return json.loads(file.metadata()['state'])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResumeError(f'{path}: expected the saved state of a training, came: {error}; '
                          'start without --resume') from error


def best_weights(path: str | Path) -> dict[str, torch.Tensor] | None:
    """Return the weights that had scored best when a state was saved, None without any."""
    with safe_open(path, 'pt') as file:
        found = {name.removeprefix('best/'): file.get_tensor(name)
                 for name in file.keys()  # noqa: SIM118
                 if name.startswith('best/')}
    return found or None


def _differences(one: Any, other: Any, name: str = '') -> list[str]:
    """What another tree of settings has otherwise."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [text for key in {**one, **other} for text in _differences(
            one.get(key), other.get(key), f'{name}.{key}' if name else key)]
    return [] if one == other else [f'{name} {other} instead of {one}']


def load_learner(path: str | Path, learner: Learner) -> dict[str, Any]:
    """
    Put a learner where the saved one was and return the caller's `extra`.

    :param learner: built with the same policy settings and demonstrations.
    :raises ResumeError: if the file is damaged or belongs to another policy.
    """
    meta = read_extra(path)
    came = json.loads(json.dumps(learner.policy.settings.to_dict()))
    if meta['policy'] != came:
        raise ResumeError(f'{path}: expected a policy of these settings, came one with '
                          f'{", ".join(_differences(came, meta["policy"]))}; use the same --core '
                          'and --interface')
    with safe_open(path, 'pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    learner.begin(meta['stage'])
    learner.step_count = meta['step']
    learner.policy.load_state_dict(named('policy/'))
    for name, value in named('average/').items():
        learner.average[name].copy_(value)
    learner.frame_head.load_state_dict(named('frame_head/'), strict=False)
    state = learner.optimizer.state_dict()
    parameters = [p for group in learner.optimizer.param_groups for p in group['params']]
    for name, value in named('optimizer/').items():
        index, slot = name.split('/')
        if value.ndim:
            # Laid out in memory as the weight it belongs to: another order rounds differently.
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        state['state'].setdefault(int(index), {})[slot] = value
    learner.optimizer.load_state_dict(state)
    if learner.streams is not None:
        learner.streams.restore({k: v.numpy() for k, v in named('streams/').items()})
        learner.carried = tensors['carried']
    return meta['extra']
