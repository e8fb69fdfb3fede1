"""The trained policy as ONNX: one graph for an image's features, one for a policy step."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.interface import Interface
from liquid_policy.policy import Policy
from liquid_policy.settings import PolicySettings

# Newest opset that all supported ONNX Runtime versions (1.17 and later) implement fully.
_OPSET = 17
ENCODER, STEP = 'encoder.onnx', 'step.onnx'


class _Step(nn.Module):
    """The policy step with plain tensors in and out, everything in physical units."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy
        self.train(policy.training)

    def forward(self, features: Tensor, vector: Tensor, elapsed: Tensor, state: Tensor):
        after, answer = self.policy.step(torch.cat((features, vector), 1), elapsed, state)
        mixture = answer.mixture
        return (after, mixture.weights, mixture.means, mixture.scales, answer.estimate_mean,
                answer.estimate_scale)


def export_encoder(policy: Policy) -> bytes:
    """
    Return the encoder as ONNX: `color` uint8 `(1, height, width, 3)` and `depth` float32
    `(1, height, width)` [m] to `features` `(1, size)`; batch norm is folded into the layers.
    """
    settings = policy.settings.encoder
    shape = (1, settings.height, settings.width_pixels)
    inputs = (torch.zeros(*shape, 3, dtype=torch.uint8), torch.ones(shape))
    return _export(policy.encoder, inputs, ['color', 'depth'], ['features'])


def export_step(policy: Policy) -> bytes:
    """
    Return one policy step as ONNX.

    Inputs `features` `(1, size)`, `vector` `(1, vector_size)`, `elapsed` `(1, 1)` [s], `state`
    `(1, state_size)`; outputs `next_state`, `weights`, `means`, `scales`, `estimate_mean`,
    `estimate_scale`; normalisation is inside.
    """
    settings = policy.settings
    inputs = (torch.zeros(1, settings.encoder.size), torch.zeros(1, settings.vector_size),
              torch.full((1, 1), 0.01), policy.initial_state())
    return _export(_Step(policy), inputs, ['features', 'vector', 'elapsed', 'state'],
                   ['next_state', 'weights', 'means', 'scales', 'estimate_mean',
                    'estimate_scale'])


def _export(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str],
            outputs: list[str]) -> bytes:
    training = module.training
    module.eval()
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The tracing exporter is announced as old; it needs no further package and writes
            # smaller graphs than its successor.
            warnings.simplefilter('ignore')
            torch.onnx.export(module, inputs, buffer, input_names=names, output_names=outputs,
                              opset_version=_OPSET, dynamo=False)
    finally:
        module.train(training)
    return buffer.getvalue()


def to_checkpoint(policy: Policy, interface: Interface, version: str,
                  card: dict | None = None) -> Checkpoint:
    """Return the policy with its exported forms, ready to be saved."""
    weights = {name: value.detach().cpu().numpy() for name, value in policy.state_dict().items()
               if not name.endswith('num_batches_tracked')}
    return Checkpoint(version=version, settings=policy.settings.to_dict(), interface=interface,
                      card=dict(card or {}), weights=weights,
                      exports={ENCODER: export_encoder(policy), STEP: export_step(policy)})


def to_policy(checkpoint: Checkpoint) -> Policy:
    """
    Return the torch policy of a checkpoint, in evaluation mode.

    :raises ValueError: if settings and weights do not fit together.
    """
    policy = Policy(PolicySettings.from_dict(checkpoint.settings))
    weights = {name: torch.from_numpy(np.array(value))
               for name, value in checkpoint.weights.items()}
    missing, unexpected = policy.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith('num_batches_tracked')]
    if missing or unexpected:
        raise ValueError(f'checkpoint {checkpoint.version!r}: expected the weights its settings '
                         f'ask for; missing {missing[:3]}, unexpected {unexpected[:3]}')
    return policy.eval()
