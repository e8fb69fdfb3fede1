"""The policy on the robot: ONNX Runtime on one thread, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime

from liquid_policy.checkpoint import Checkpoint, CheckpointError
from liquid_policy.head_settings import head_values

_TYPES = {'tensor(float)': np.float32, 'tensor(uint8)': np.uint8}


@dataclass(frozen=True)
class Distribution:
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


class _Graph:
    """An ONNX graph with its inputs and outputs bound to fixed memory."""

    def __init__(self, data: bytes, threads: int, name: str):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Waiting threads must not burn a core that other nodes need.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(data, options,
                                                         providers=['CPUExecutionProvider'])
        except Exception as error:      # onnxruntime's errors share no base class
            raise CheckpointError(f'{name}: expected a graph that ONNX Runtime '
                                  f'{onnxruntime.__version__} can load, came: {error}; export '
                                  'the checkpoint again') from error
        self._binding = self._session.io_binding()
        self.inputs = self._bind(self._session.get_inputs(), self._binding.bind_input)
        self.outputs = self._bind(self._session.get_outputs(), self._binding.bind_output)

    @staticmethod
    def _bind(nodes, bind) -> dict[str, np.ndarray]:
        arrays = {}
        for node in nodes:
            array = np.zeros(node.shape, _TYPES[node.type])
            bind(node.name, 'cpu', 0, array.dtype.type, array.shape, array.ctypes.data)
            arrays[node.name] = array
        return arrays

    def run(self) -> None:
        """Compute the outputs from what the input arrays hold."""
        self._session.run_with_iobinding(self._binding)


def _fill(target: np.ndarray, value: np.ndarray, name: str) -> None:
    value = np.asarray(value)
    if value.shape != target.shape[1:]:
        raise ValueError(f'{name}: expected shape {target.shape[1:]}, came {value.shape}')
    target[0] = value


class EncoderRuntime:
    """Features of an image, as the checkpoint's encoder sees it."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 1):
        self.identity = checkpoint.version
        self._graph = _Graph(checkpoint.export('encoder.onnx'), threads, 'encoder.onnx')

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
        _fill(graph.inputs['color'], color, 'color')
        _fill(graph.inputs['depth'], depth, 'depth')
        graph.run()
        features = graph.outputs['features'][0].copy()
        if not np.isfinite(features).all():
            raise ValueError('features: expected finite numbers, came NaN or infinity; the '
                             'checkpoint is broken')
        return features


class PolicyRuntime:
    """
    The policy step by step; equal to torch within 1e-5.

    Heads that draw samples are given noise from a generator of their own, so that the same seed
    and the same observations give the same answers.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int = 1, seed: int = 0):
        self.version = checkpoint.version
        self._observe, self._threads = checkpoint.exports.get('observe.onnx'), threads
        self._graph = _Graph(checkpoint.export('step.onnx'), threads, 'step.onnx')
        self._observer: _Graph | None = None
        self.state_size = self._graph.inputs['state'].shape[1]
        self._noise = self._graph.inputs.get('noise')
        self.horizon = self._graph.outputs['means'].shape[2]
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the noise anew."""
        self._random = np.random.Generator(np.random.SFC64(seed))

    def initial_state(self) -> np.ndarray:
        """Return the state before anything was seen, `(state_size,)`."""
        return np.zeros(self.state_size, np.float32)

    def observe(self, features: np.ndarray, vector: np.ndarray, elapsed: float,
                state: np.ndarray) -> np.ndarray:
        """
        Return the next state and no answer, which costs less; as `step`.

        :raises CheckpointError: if the checkpoint is from before this was exported.
        """
        if self._observer is None:
            if self._observe is None:
                raise CheckpointError(f'checkpoint {self.version!r}: expected the exported file '
                                      "'observe.onnx', came none; export it with the train "
                                      'command')
            self._observer = _Graph(self._observe, self._threads, 'observe.onnx')
        self._feed(self._observer, features, vector, elapsed, state)
        self._observer.run()
        return self._observer.outputs['next_state'][0].copy()

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
        self._feed(self._graph, features, vector, elapsed, state)
        if self._noise is not None:
            self._random.standard_normal(dtype=np.float32, out=self._noise)
        self._graph.run()
        outputs = self._graph.outputs
        # Copies: the graph's memory is written again at the next step.
        return outputs['next_state'][0].copy(), Distribution(
            *(outputs[name][0].copy() for name in (
                'weights', 'means', 'scales', 'estimate_mean', 'estimate_scale')))

    @staticmethod
    def _feed(graph: _Graph, features: np.ndarray, vector: np.ndarray, elapsed: float,
              state: np.ndarray) -> None:
        if not (math.isfinite(elapsed) and elapsed >= 0.0):
            raise ValueError(f'elapsed: expected a finite time of at least 0 s, came {elapsed}')
        inputs = graph.inputs
        if 'features' not in inputs and np.size(features):
            raise ValueError(f'features: expected none, this policy has no images; came '
                             f'{np.size(features)}')
        for name, value in (('features', features), ('vector', vector), ('state', state)):
            if name not in inputs:
                continue
            _fill(inputs[name], value, name)
            # A sum is finite only if every term is; it costs a third of isfinite().all().
            if not math.isfinite(inputs[name].sum()):
                raise ValueError(f'{name}: expected finite numbers, came NaN or infinity')
        inputs['elapsed'][0, 0] = elapsed


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
        self._low = -np.inf if low is None else low
        self._high = np.inf if high is None else high
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

    def choose(self, distribution: Distribution, elapsed: float) -> tuple[int, np.ndarray]:
        """
        Return the component to follow and its chunk, `(horizon, actions)`.

        :param distribution: the policy's answer.
        :param elapsed: time since the last call [s].
        """
        heaviest = int(np.argmax(distribution.weights))
        index = heaviest
        self._age += elapsed
        past = int(round(self._age / self._dt))
        if self._plan is not None and past < len(self._plan):
            rest = self._plan[past:]
            ahead = distribution.means[:, :len(rest)]
            # In standard deviations, so that rad/s, suction and m/s weigh alike.
            error = (ahead - rest) / distribution.scales[:, :len(rest)]
            nearest = int(np.argmin(np.square(error).mean((1, 2))))
            least = self._threshold * distribution.weights[heaviest]
            if distribution.weights[nearest] >= least:
                index = nearest
        self._plan, self._age = distribution.means[index], 0.0
        return index, np.clip(self._plan, self._low, self._high)
