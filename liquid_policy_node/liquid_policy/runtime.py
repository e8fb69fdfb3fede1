"""The policy on the robot, on one thread and without torch: written out, or ONNX Runtime."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.head_settings import head_values
from liquid_policy.numpy_step import NumpyStep
from liquid_policy.onnx_graph import OnnxGraph, OnnxStep
from liquid_policy.settings import PolicySettings

ENGINES = ('auto', 'numpy', 'onnx')
_INPUTS = 'features', 'vector', 'state'


class Distribution(NamedTuple):
    """
    What the policy proposes, in physical units.

    :param weights: of the components, `(components,)`, summing to 1.
    :param means: `(components, horizon, actions)`.
    :param scales: standard deviations, as `means`.
    :param estimate_mean: the interface's targets, `(targets,)`.
    :param estimate_scale: their standard deviations, `(targets,)`.
    """

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    estimate_mean: np.ndarray
    estimate_scale: np.ndarray


class EncoderRuntime:
    """Features of an image, as the checkpoint's encoder sees it."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 1, provider: str = 'cpu'):
        self.identity = checkpoint.version
        self._graph = OnnxGraph(checkpoint.export('encoder.onnx'), threads, 'encoder.onnx',
                                provider)

    def encode(self, color: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """
        Return the features of one image, `(size,)` float32.

        :param color: uint8 `(height, width, 3)`, red first.
        :param depth: float32 `(height, width)` [m]; 0, NaN, infinity: not measured.
        :raises ValueError: if a shape or type is wrong, or the answer is not finite.
        """
        color, depth = np.asarray(color), np.asarray(depth)
        if color.dtype != np.uint8:
            raise ValueError(f'color: expected uint8, came {color.dtype}')
        if not np.issubdtype(depth.dtype, np.floating):
            raise ValueError(f'depth: expected floats in metres, came {depth.dtype}')
        graph = self._graph
        graph.fill('color', color)
        graph.fill('depth', depth)
        graph.run()
        features = graph.outputs['features'][0].copy()
        if not np.isfinite(features).all():
            raise ValueError('features: expected finite numbers, came NaN or infinity; the '
                             'checkpoint is broken')
        return features


class PolicyRuntime:
    """
    The policy step by step; equal to torch within 1e-5.

    Cores and heads that `NumpyStep` knows run written out in numpy, all others as their exported
    graph. Heads that draw samples are given noise from a generator of their own, so that the
    same seed and the same observations give the same answers.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int = 1, seed: int = 0,
                 engine: str = 'auto'):
        """
        Build the step.

        :param checkpoint: the policy; its weights are not kept.
        :param threads: of an ONNX graph.
        :param seed: of the noise.
        :param engine: `numpy`, `onnx`, or `auto`: numpy where it is written out.
        :raises ValueError: for another engine, or a policy that `numpy` does not know.
        """
        if engine not in ENGINES:
            raise ValueError(f'engine: expected one of {", ".join(ENGINES)}, came {engine!r}')
        self.version = checkpoint.version
        written = NumpyStep.of(checkpoint) if engine != 'onnx' else None
        if written is None and engine == 'numpy':
            raise ValueError(f"engine: expected 'onnx' or 'auto' for model {self.version!r}, "
                             'whose core or head is not written out in numpy')
        self.engine = 'onnx' if written is None else 'numpy'
        self._step = OnnxStep(checkpoint, threads) if written is None else written
        self.state_size, self.horizon = self._step.state_size, self._step.horizon
        observed = self._step.observed
        count = PolicySettings.from_dict(checkpoint.settings).feature_size
        self._observed, self._parts = observed, (observed[:count], observed[count:])
        self._shapes = (count,), (len(observed) - count,), (self.state_size,)
        self._nothing = np.zeros(len(observed), np.float32), np.zeros(self.state_size, np.float32)
        self.seed(seed)

    @property
    def samples(self) -> bool:
        """Whether answers hold noise, so that the same step twice is not the same."""
        return isinstance(self._step, OnnxStep) and self._step.samples

    def seed(self, seed: int) -> None:
        """Start the noise anew."""
        if isinstance(self._step, OnnxStep):
            self._step.seed(seed)

    def initial_state(self) -> np.ndarray:
        """Return the state before anything was seen, `(state_size,)`."""
        return np.zeros(self.state_size, np.float32)

    def observe(self, features: np.ndarray, vector: np.ndarray, elapsed: float,
                state: np.ndarray) -> np.ndarray:
        """
        Return the next state and no answer, which costs less; as `step`.

        :raises CheckpointError: if the checkpoint is from before this was exported.
        """
        return self._step.observe(elapsed, self._feed(features, vector, elapsed, state))

    def step(self, features: np.ndarray, vector: np.ndarray, elapsed: float,
             state: np.ndarray) -> tuple[np.ndarray, Distribution]:
        """
        Return the next state and what to do.

        :param features: of the newest image, `(features,)`; empty for a policy without images.
        :param vector: IMU and joints in the interface's order and units, `(vector_size,)`.
        :param elapsed: time since the last step [s].
        :param state: `(state_size,)`.
        :raises ValueError: if a shape is wrong, a number is not finite or time ran backwards.
        """
        state = self._feed(features, vector, elapsed, state)
        answer = self._step.step(elapsed, state)
        return answer[0], Distribution(*answer[1:])

    def _feed(self, features: np.ndarray, vector: np.ndarray, elapsed: float,
              state: np.ndarray) -> np.ndarray:
        """Check all inputs and hand over what was observed; return the state as an array."""
        if not (math.isfinite(elapsed) and elapsed >= 0.0):
            raise ValueError(f'elapsed: expected a finite time of at least 0 s, came {elapsed}')
        given = np.asarray(features), np.asarray(vector), np.asarray(state, np.float32)
        if (given[0].shape, given[1].shape, given[2].shape) != self._shapes:
            self._refuse_shapes(given)
        self._parts[0][:], self._parts[1][:] = given[:2]
        # NaN and infinity survive being multiplied by 0: the cheapest test of many numbers.
        if not math.isfinite(self._observed.dot(self._nothing[0])
                             + given[2].dot(self._nothing[1])):
            name = next((name for name, value in zip(_INPUTS, given, strict=True)
                         if not np.isfinite(value).all()), 'inputs')
            raise ValueError(f'{name}: expected finite numbers, came NaN or infinity')
        return given[2]

    def _refuse_shapes(self, given: tuple[np.ndarray, ...]) -> None:
        for name, value, shape in zip(_INPUTS, given, self._shapes, strict=True):
            if value.shape != shape:
                raise ValueError(
                    f'features: expected none, this policy has no images; came {value.size}'
                    if shape == (0,) else f'{name}: expected shape {shape}, came {value.shape}')


def chunk_time(checkpoint: Checkpoint) -> float:
    """Return the time between two steps of the checkpoint's action chunks [s]."""
    return float(head_values(checkpoint.settings)['dt'])


class ModeKeeper:
    """
    Keep to the component that continues the last plan, instead of flickering between plans.

    Of a head that samples, whose components weigh the same, the sample nearest to the last plan
    is taken (the batch consistency of IMLE Policy, Rana et al., arXiv:2502.12371).

    A component's distance is measured to what remains of the last plan; the nearest one is kept
    unless its weight has fallen below `threshold` times the heaviest one's.

    Keeping costs reactions: on the conveyor, whose parts leave one good plan at a time, one LSTM
    policy picked 23 of 40 parts with 0.8 and 30 with 1.0, which always takes the heaviest. That
    is too few parts to be sure of, so measure it on your own task.
    Lower it where two plans are equally good and half of each is none.
    """

    def __init__(self, dt: float, threshold: float = 1.0, low: np.ndarray | None = None,
                 high: np.ndarray | None = None):
        """
        Remember nothing yet.

        :param dt: time between steps of a chunk [s].
        :param threshold: 0: never switch; 1: always take the heaviest.
        :param low: smallest value each action can take, `(actions,)`; none when left out. A
            regression ends a hair beyond 0 and 1 of a gripper, which means nothing.
        :param high: largest value, likewise.
        :raises ValueError: if `dt` is not above 0 or `threshold` not in [0, 1].
        """
        if not dt > 0.0:
            raise ValueError(f'dt: expected a time above 0 s, came {dt}')
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f'threshold: expected 0 to 1, came {threshold}')
        self._dt, self._threshold = dt, threshold
        self._ranges = (-np.inf if low is None else low, np.inf if high is None else high)
        self._low = self._high = np.zeros((0, 0), np.float32)   # as large as a plan, see `choose`
        self.reset()

    @classmethod
    def of(cls, checkpoint: Checkpoint, threshold: float = 1.0) -> ModeKeeper:
        """Return a keeper with the step time and the action ranges of a checkpoint."""
        limits = checkpoint.interface.limits
        ranges = [limits[name].range if name in limits else None
                  for name in checkpoint.interface.action_names]
        low, high = np.array([found or (-np.inf, np.inf) for found in ranges], np.float32).T
        return cls(chunk_time(checkpoint), threshold, low, high)

    def reset(self) -> None:
        """Forget the last plan."""
        self._plan: np.ndarray | None = None
        self._age = 0.0

    def choose(self, distribution: Distribution, elapsed: float,
               keep: bool = True) -> tuple[int, np.ndarray]:
        """
        Return the component to follow and its chunk, `(horizon, actions)`.

        :param distribution: the policy's answer.
        :param elapsed: time since the last call [s].
        :param keep: remember the plan; False answers as if, and changes nothing.
        """
        weights = distribution.weights.tolist()
        index = heaviest = weights.index(max(weights))
        least = self._threshold * weights[heaviest]
        age = self._age + elapsed
        # Most often no other component is heavy enough to be kept.
        if len(weights) > 1 and self._plan is not None and sorted(weights)[-2] >= least \
                and (past := round(age / self._dt)) < len(self._plan):
            rest = self._plan[past:]
            ahead = distribution.means[:, :len(rest)]
            # In standard deviations, so that rad/s, suction and m/s weigh alike.
            error = (ahead - rest) / distribution.scales[:, :len(rest)]
            nearest = int(np.argmin(np.square(error).mean((1, 2))))
            if weights[nearest] >= least:
                index = nearest
        plan = distribution.means[index]
        if keep:
            self._plan, self._age = plan, 0.0
        if len(self._low) != len(plan):     # two arrays of one shape take a third of the time
            self._low, self._high = (np.full_like(plan, bound) for bound in self._ranges)
        chunk = np.maximum(plan, self._low)
        return index, np.minimum(chunk, self._high, out=chunk)
