"""A whole policy step in numpy: normalisation, core, heads, and back to physical units."""

from __future__ import annotations

import numpy as np

from liquid_policy.checkpoint import Checkpoint, CheckpointError
from liquid_policy.numpy_cores import (
    LINE,
    NumpyCore,
    Weights,
    joined,
    memory,
    numpy_core,
    placed,
)
from liquid_policy.settings import DeterministicSettings, MixtureSettings, PolicySettings

# As in policy.py and heads/mixture.py.
_INPUT_LIMIT, _LEAST_OF_TARGETS = 8.0, 0.02
# Beyond it float32 has no exp, and a softplus is the number itself long before.
_LARGEST = 80.0
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
        units, scale = settings.core.units, own['input_scaling.scale']
        self._seen, self._x = seen, seen[units:-1]
        self.observed = memory(settings.input_size)
        self._center = placed(own['input_scaling.center'])
        self._high, self._low = placed(_INPUT_LIMIT * scale), placed(-_INPUT_LIMIT * scale)
        for name in ('head.trunk.0.weight', 'estimate.layers.0.weight'):
            own[name] = np.hstack((own[name][:, :units], own[name][:, units:] / scale))
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
        self._sums, self._gates, self._hidden = (memory(len(self._first)) for _ in range(3))
        self._trunk, self._estimate = np.split(self._hidden[:len(bias)], [len(trunk) + 1])

    def _build_last(self, own: Weights, settings: PolicySettings) -> None:
        """Last layers, with the scales of actions and targets in them where they are linear."""
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
        lines = np.zeros((-targets % LINE, last.shape[1]))
        self._last_estimate = joined(np.vstack((means, lines, last[targets:])))

        self._build_answer(own, first, head.least_scale * scale)

    def _build_answer(self, own: Weights, components: int, least: np.ndarray) -> None:
        """
        The answer's memory: means of the targets, their raw scales, raw scales of the chunk,
        logits of the components, means of the chunk; the first three begin at cache lines.

        What needs an exponential lies together. A deterministic head has neither raw scales nor
        logits.

        :param components: how many have logits.
        :param least: of the chunk's standard deviations.
        """
        scale, size = own['target_scaling.scale'], len(least)
        raw, width, targets = size if components else 0, len(self._last_estimate) // 2, len(scale)
        answer = memory(2 * width + len(self._last))
        self._of_targets, self._of_chunk = np.split(answer, [2 * width])
        scales, weights, means = np.split(self._of_chunk[:raw + components + size],
                                          [raw, raw + components])
        self._mean, self._deviation = answer[:targets], answer[width:width + targets]
        self._scales = answer[width:2 * width + raw]
        self._exponents = answer[width:2 * width + raw + components]
        self._largest = placed(np.full(len(self._exponents), _LARGEST))
        self._factors = memory(len(self._scales))
        self._factors[:targets] = scale
        self._factors[width:] = np.tile(own['action_scaling.scale'], raw // self._shape[2])
        self._least = placed(_LEAST_OF_TARGETS * scale)
        self._least_of_chunk = placed(least).reshape(self._shape)
        self._spread = (scales if raw else memory(size)).reshape(self._shape)
        self._means, self._weights = means.reshape(self._shape), weights
        self._ones, self._sum = np.ones((components, components), np.float32), memory(components)
        self._logits = np.ascontiguousarray(self._last[raw:raw + components])

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
        seen = memory(settings.core.units + settings.input_size + 1)
        seen[-1] = 1.0
        core = numpy_core(settings.core, checkpoint.weights, seen,
                          np.asarray(checkpoint.weights['input_scaling.scale'], np.float64))
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
        np.fmin(x, self._high, x)
        np.fmax(x, self._low, x)
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
        np.minimum(exponents, self._largest, out=exponents)
        np.exp(exponents, exponents)
        np.log1p(scales, scales)
        np.multiply(scales, self._factors, scales)
        chunk = self._means.copy()
        if len(self._relative):
            chunk += self.observed[self._relative]
        return (after, self._normalised(), chunk, np.add(self._spread, self._least_of_chunk),
                self._mean.copy(), np.add(self._deviation, self._least))

    def _normalised(self) -> np.ndarray:
        """Return the components' weights, which sum to 1."""
        weights = self._weights
        if not len(weights):
            return np.ones(1, np.float32)
        total = self._ones.dot(weights, self._sum)      # for each the same
        if not 1e-30 < total.item(0) < 1e30:    # logits without a common exponent: the slower way
            self._logits.dot(self._trunk, weights)
            np.exp(weights - weights.max(), weights)
            self._ones.dot(weights, total)
        return np.divide(weights, total)
