"""A whole policy step in numpy: normalisation, core, heads, and back to physical units."""

from __future__ import annotations

import numpy as np

from liquid_policy.checkpoint import Checkpoint, CheckpointError
from liquid_policy.numpy_cores import NumpyCore, Weights, joined, numpy_core
from liquid_policy.settings import DeterministicSettings, MixtureSettings, PolicySettings

# As in policy.py and heads/mixture.py.
_INPUT_LIMIT, _LOWER_LIMIT = np.array(8.0, np.float32), np.array(-8.0, np.float32)
_LEAST_OF_TARGETS = 0.02
# Beyond it float32 has no exp, and a softplus is the number itself long before.
_LARGEST = np.array(80.0, np.float32)
_ONE = np.array(1.0, np.float32)
_AT_ONE = 1.2784645427610738    # silu(it) = 1


class NumpyStep:
    """
    Steps a policy whose core and head are written out, without ONNX Runtime; see `of`.

    Equal to torch within 1e-5. `observed` takes features and vector in physical units before
    every step. All between it and the answer lies in memory that was allocated once.
    """

    def __init__(self, settings: PolicySettings, weights: Weights, core: NumpyCore,
                 seen: np.ndarray):
        """
        Fold constants into the weights.

        :param settings: the policy's.
        :param weights: the torch policy's, by name.
        :param core: shares `seen`.
        :param seen: see `numpy_core`.
        """
        self._core, self._unit_time = core, settings.core.unit_time
        self.state_size = core.state_size
        own = {name: np.asarray(value, np.float64) for name, value in weights.items()
               if name.startswith(('input_', 'action_', 'target_', 'head.', 'estimate.'))}
        self._seen = seen
        self._x = seen[settings.core.units:-1]
        self.observed = np.zeros(settings.input_size, np.float32)
        self._center = own['input_scaling.center'].astype(np.float32)
        self._inverse = (1.0 / own['input_scaling.scale']).astype(np.float32)
        self._relative = np.array(settings.relative, int) + settings.feature_size
        self._build_first(own)
        self._build_last(own, settings)

    def _build_first(self, own: Weights) -> None:
        """
        First layers of both heads as one product, halved: silu(2 a) = a (tanh(a) + 1).

        Each head's hidden layer has a 1 behind it, for the next layer's bias: a row of zeros
        whose bias makes it 1.
        """
        trunk, estimate = own['head.trunk.0.weight'], own['estimate.layers.0.weight']
        nothing = np.zeros((1, trunk.shape[1]))
        bias = np.concatenate((own['head.trunk.0.bias'], [_AT_ONE],
                               own['estimate.layers.0.bias'], [_AT_ONE]))
        self._first = joined(
            0.5 * np.vstack((trunk, nothing, estimate, nothing)), 0.5 * bias[:, None])
        self._sums, self._gates = np.empty((2, len(bias)), np.float32)
        self._hidden = np.empty(len(bias), np.float32)
        self._trunk, self._estimate = np.split(self._hidden, [len(trunk) + 1])

    def _build_last(self, own: Weights, settings: PolicySettings) -> None:
        """
        Last layers, with the scales of actions and targets in them where they are linear.

        The answer's memory: means of the targets, their raw scales, raw scales of the chunk,
        logits of the components, means of the chunk. What needs an exponential lies together.
        """
        head, targets = settings.head, settings.target_size
        mixture = isinstance(head, MixtureSettings)
        components = head.components if isinstance(head, MixtureSettings) else 1
        self._shape = (components, head.horizon, settings.action_size)
        size = int(np.prod(self._shape))
        repeat = components * head.horizon
        scale = np.tile(own['action_scaling.scale'], repeat)
        shift = np.tile(own['action_scaling.center'], repeat)
        last = np.column_stack((own['head.output.weight'], own['head.output.bias']))
        first = components if mixture else 0
        expected = (2 * size + first if mixture else size, head.hidden + 1)
        if last.shape != expected:
            raise CheckpointError(
                f'head.output: expected weights and bias of shape {expected}, which the settings '
                f'ask for, came {last.shape}; export the checkpoint again')
        means = scale[:, None] * last[first:first + size]
        means[:, -1] += shift
        self._last = joined(np.vstack((last[first + size:], last[:first], means)))
        last = np.column_stack((own['estimate.layers.2.weight'], own['estimate.layers.2.bias']))
        means = own['target_scaling.scale'][:, None] * last[:targets]
        means[:, -1] += own['target_scaling.center']
        self._last_estimate = joined(np.vstack((means, last[targets:])))

        raw = size if mixture else 0
        answer = np.zeros(2 * targets + raw + first + size, np.float32)
        self._of_targets, self._of_chunk = answer[:2 * targets], answer[2 * targets:]
        self._scales = answer[targets:2 * targets + raw]
        self._exponents = answer[targets:2 * targets + raw + first]
        self._weights = answer[2 * targets + raw:2 * targets + raw + first]
        self._ones = np.ones(first, np.float32)
        self._means = answer[-size:].reshape(self._shape)
        self._estimates = answer[:targets], answer[targets:2 * targets]
        factors = np.concatenate((own['target_scaling.scale'], scale[:raw]))
        least = np.repeat((_LEAST_OF_TARGETS, head.least_scale), (targets, raw))
        self._factors = factors.astype(np.float32)
        self._least = (least * factors).astype(np.float32)
        if mixture:
            self._spread = answer[2 * targets:2 * targets + raw].reshape(self._shape)
            self._logits = np.ascontiguousarray(self._last[raw:raw + first])
        else:
            self._spread = (head.least_scale * scale).astype(np.float32).reshape(self._shape)
            self._weights = np.ones(1, np.float32)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> NumpyStep | None:
        """
        Return the step of a checkpoint, or None where it is not written out.

        Written out are the cores of `numpy_core` with a mixture head of diagonal covariance or
        a deterministic one, with a trunk of one layer.
        """
        settings = PolicySettings.from_dict(checkpoint.settings)
        head = settings.head
        known = (isinstance(head, DeterministicSettings)
                 or isinstance(head, MixtureSettings) and not head.rank)
        if not known or head.layers > 1 or 'head.output.weight' not in checkpoint.weights:
            return None
        seen = np.ones(settings.core.units + settings.input_size + 1, np.float32)
        core = numpy_core(settings.core, checkpoint.weights, seen)
        return None if core is None else cls(settings, checkpoint.weights, core, seen)

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return self._shape[1]

    def observe(self, elapsed: float, state: np.ndarray) -> np.ndarray:
        """
        Return the next state only, `(state_size,)`.

        :param elapsed: time since the last step [s].
        :param state: `(state_size,)`.
        """
        x = self._x
        np.subtract(self.observed, self._center, x)
        np.multiply(x, self._inverse, x)
        np.minimum(x, _INPUT_LIMIT, out=x)
        np.maximum(x, _LOWER_LIMIT, out=x)
        after = np.empty(self.state_size, np.float32)
        self._core.advance(state, elapsed / self._unit_time, after)
        return after

    def step(self, elapsed: float, state: np.ndarray) -> tuple[np.ndarray, ...]:
        """
        Return the next state and what to do, in new memory; as `observe`.

        :return: next state `(state_size,)`; in physical units the weights `(components,)`, means
            and scales `(components, horizon, actions)`, and the targets' mean and scale
            `(targets,)`.
        """
        after = self.observe(elapsed, state)
        self._first.dot(self._seen, self._sums)
        np.tanh(self._sums, self._gates)
        np.add(self._gates, _ONE, self._gates)
        np.multiply(self._sums, self._gates, self._hidden)
        self._last_estimate.dot(self._estimate, self._of_targets)
        self._last.dot(self._trunk, self._of_chunk)
        exponents, scales = self._exponents, self._scales
        np.minimum(exponents, _LARGEST, out=exponents)
        np.exp(exponents, exponents)
        np.log1p(scales, scales)
        np.multiply(scales, self._factors, scales)
        np.add(scales, self._least, scales)
        if len(self._ones):
            self._normalise()
        chunk = self._means.copy()
        if len(self._relative):
            chunk += self.observed[self._relative]
        mean, deviation = self._estimates
        return (after, self._weights.copy(), chunk, self._spread.copy(), mean.copy(),
                deviation.copy())

    def _normalise(self) -> None:
        """Make the weights sum to 1."""
        weights = self._weights
        total = float(weights.dot(self._ones))
        if not 1e-30 < total < 1e30:        # logits without a common exponent: the slower way
            self._logits.dot(self._trunk, weights)
            np.exp(weights - weights.max(), weights)
            total = float(weights.dot(self._ones))
        np.divide(weights, np.float32(total), weights)
