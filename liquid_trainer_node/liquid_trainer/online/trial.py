"""A candidate as the policy node will run it: made, and tried out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.export import OBSERVE, STEP, export_observe, export_step
from liquid_policy.policy import Policy
from liquid_policy.runtime import PolicyRuntime
from liquid_trainer.online.window import Window

_MARK = '+online.'


def make_candidate(base: Checkpoint, policy: Policy, number: int,
                   card: Mapping[str, Any]) -> Checkpoint:
    """
    Return a checkpoint with a policy's core and heads and the base's encoder.

    The encoder's exported form is taken over byte for byte, so its identity stays: perception
    has nothing to change.

    :param base: where learning began.
    :param policy: without an encoder.
    :param number: of the promotion.
    :param card: what to say about it.
    """
    weights = dict(base.weights)
    weights.update({name: value.detach().cpu().numpy()
                    for name, value in policy.state_dict().items()})
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    version = f'{base.version.split(_MARK)[0]}{_MARK}{number}-{digest.hexdigest()[:8]}'
    exports = {**base.exports, STEP: export_step(policy), OBSERVE: export_observe(policy)}
    return replace(base, version=version, weights=weights, exports=exports,
                   card={**base.card, 'online': dict(card)})


@torch.no_grad()
def try_out(checkpoint: Checkpoint, policy: Policy, window: Window,
            tolerance: float = 1e-3) -> None:
    """
    Step the run-time form through a window and compare it with torch.

    :param checkpoint: as read back from the file.
    :param policy: it should be equal to, without its encoder.
    :param tolerance: largest difference, in units of the actions' scales.
    :raises ValueError: if it differs, or answers with numbers that are not finite.
    """
    runtime = PolicyRuntime(checkpoint)
    state, torch_state = runtime.initial_state(), policy.initial_state(1)
    scale = policy.action_scaling.scale.cpu().numpy()
    worst = 0.0
    for features, vector, elapsed in zip(window.features, window.vectors, window.elapsed(),
                                         strict=True):
        state, answer = runtime.step(features, vector, float(elapsed), state)
        observed = torch.from_numpy(np.concatenate((features, vector)))[None]
        noise = policy.head.draw_noise(1)
        if noise is not None:       # samples differ; the carried state is what can be compared
            torch_state = policy.observe(observed, torch.tensor([[float(elapsed)]]), torch_state)
            worst = max(worst, float(np.abs(state - torch_state[0].numpy()).max()))
            continue
        torch_state, wanted = policy.step(observed, torch.tensor([[float(elapsed)]]), torch_state)
        apart = (answer.means - wanted.mixture.means[0].numpy()) / scale
        worst = max(worst, float(np.abs(apart).max()))
        if not np.isfinite(answer.means).all():
            break
    if not worst <= tolerance:      # NaN too
        raise ValueError(f'{checkpoint.version}: expected the exported form to equal the trained '
                         f'one within {tolerance}, came {worst}; it is not promoted')
