"""The trained policy as ONNX: graphs of the encoder, of a step, and of the core alone."""

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
ENCODER, STEP, OBSERVE = 'encoder.onnx', 'step.onnx', 'observe.onnx'


class _Observe(nn.Module):
    """The core's part of a policy step with plain tensors in and out, in physical units."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy
        self.train(policy.training)

    def forward(self, *inputs: Tensor) -> Tensor:
        *observed, elapsed, state = inputs
        return self.policy.observe(torch.cat(observed, 1), elapsed, state)


class _Step(_Observe):
    """The whole policy step; heads that draw samples take their noise last."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        noise = inputs[-1] if self.policy.head.noise_shape else None
        *observed, elapsed, state = inputs if noise is None else inputs[:-1]
        after, answer = self.policy.step(torch.cat(observed, 1), elapsed, state, noise)
        mixture = answer.mixture
        return (after, mixture.weights, mixture.means, mixture.deviations, answer.estimate_mean,
                answer.estimate_scale)


def export_encoder(policy: Policy) -> bytes:
    """
    Return the encoder as ONNX: `color` uint8 `(1, height, width, 3)` and `depth` float32
    `(1, height, width)` [m] to `features` `(1, size)`; batch norm is folded into the layers.
    """
    settings = policy.settings.encoder
    if settings is None:
        raise ValueError('encoder: expected a policy with images, came one without; it needs no '
                         'encoder')
    shape = (1, settings.height, settings.width_pixels)
    inputs = (torch.zeros(*shape, 3, dtype=torch.uint8), torch.ones(shape))
    return _export(policy.encoder, inputs, ['color', 'depth'], ['features'])


def export_step(policy: Policy) -> bytes:
    """
    Return one policy step as ONNX.

    Inputs `features` `(1, size)` (where there are images), `vector` `(1, vector_size)`, `elapsed`
    `(1, 1)` [s], `state` `(1, state_size)` and, for heads that draw samples, `noise`
    `(1, *noise_shape)`; outputs `next_state`, `weights`, `means`, `scales`, `estimate_mean`,
    `estimate_scale`; normalisation and the whole sampling loop are inside.
    """
    inputs = _observed(policy)
    noise = policy.head.draw_noise(1)
    if noise is not None:
        inputs['noise'] = noise
    return _export(_Step(policy), tuple(inputs.values()), list(inputs),
                   ['next_state', 'weights', 'means', 'scales', 'estimate_mean',
                    'estimate_scale'])


def export_observe(policy: Policy) -> bytes:
    """
    Return the core's part of a step as ONNX, for steps between two plans.

    Inputs as `export_step` without `noise`; output `next_state`.
    """
    inputs = _observed(policy)
    return _export(_Observe(policy), tuple(inputs.values()), list(inputs), ['next_state'])


def _observed(policy: Policy) -> dict[str, Tensor]:
    settings = policy.settings
    features = {'features': torch.zeros(1, settings.feature_size)} if settings.encoder else {}
    return {**features, 'vector': torch.zeros(1, settings.vector_size),
            'elapsed': torch.full((1, 1), 0.01), 'state': policy.initial_state()}


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
    exports = {STEP: export_step(policy), OBSERVE: export_observe(policy)}
    if policy.encoder is not None:
        exports[ENCODER] = export_encoder(policy)
    weights = {name: value.detach().cpu().numpy() for name, value in policy.state_dict().items()
               if not name.endswith('num_batches_tracked')}
    return Checkpoint(version=version, settings=policy.settings.to_dict(), interface=interface,
                      card=dict(card or {}), weights=weights,
                      exports=exports)


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
