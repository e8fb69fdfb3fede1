"""ONNX graphs with their inputs and outputs bound to fixed memory, and the policy step as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.checkpoint import Checkpoint, CheckpointError

_TYPES = {'tensor(float)': np.float32, 'tensor(uint8)': np.uint8}
# ONNX Runtime's execution providers by short name; what one cannot compute, the next one does.
PROVIDERS: dict[str, tuple[str, ...]] = {
    'cpu': ('CPUExecutionProvider',),
    'cuda': ('CUDAExecutionProvider', 'CPUExecutionProvider'),
    'tensorrt': ('TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider')}
# An engine is built once, for minutes, and found here afterwards.
_CACHE = Path('~/.cache/liquid_policy/tensorrt')


def providers(name: str, available: list[str]) -> list[str | tuple[str, dict[str, str]]]:
    """
    Return ONNX Runtime's providers of a short name, with options.

    :param name: a key of `PROVIDERS`.
    :param available: what this build of ONNX Runtime has.
    :raises CheckpointError: if the first one is not available.
    """
    if name not in PROVIDERS:
        raise CheckpointError(
            f'provider: expected one of {", ".join(PROVIDERS)}, came {name!r}')
    first = PROVIDERS[name][0]
    if first not in available:
        raise CheckpointError(
            f'provider {name!r}: expected an ONNX Runtime with {first}, this one has '
            f'{", ".join(available)}; install onnxruntime-gpu (on a Jetson, the wheel made for '
            "its JetPack) in place of onnxruntime, or set provider to 'cpu'")
    cache = {'trt_fp16_enable': '1', 'trt_engine_cache_enable': '1',
             'trt_engine_cache_path': str(_CACHE.expanduser())}
    options = {'TensorrtExecutionProvider': cache}
    return [(kind, options[kind]) if kind in options else kind for kind in PROVIDERS[name]
            if kind in available]


class OnnxGraph:
    """An ONNX graph with its inputs and outputs bound to fixed memory."""

    def __init__(self, data: bytes, threads: int, name: str, provider: str = 'cpu'):
        """
        Load a graph.

        :param data: the file.
        :param threads: of one run on the processor.
        :param name: of the graph, for messages.
        :param provider: a key of `PROVIDERS`.
        :raises CheckpointError: if it cannot be loaded, or not with this provider.
        """
        # Late: 20 MB that a policy written out in numpy does not need.
        import onnxruntime
        chosen = providers(provider, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Waiting threads must not burn a core that other nodes need.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        # One image at a time: an arena that grows by doubling would keep what it never needs.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=chosen)
        except Exception as error:      # onnxruntime's errors share no base class
            raise CheckpointError(f'{name}: expected a graph that ONNX Runtime '
                                  f'{onnxruntime.__version__} can load, came: {error}; export '
                                  'the checkpoint again') from error
        # Its Python half keeps the file for a second attempt with other providers.
        self._session._model_bytes = None
        self._binding = self._session.io_binding()
        self.inputs = self._bind(self._session.get_inputs(), self._binding.bind_input)
        self.outputs = self._bind(self._session.get_outputs(), self._binding.bind_output)

    @staticmethod
    def _bind(nodes: Any, bind: Any) -> dict[str, np.ndarray]:
        arrays = {}
        for node in nodes:
            array = np.zeros(node.shape, _TYPES[node.type])
            bind(node.name, 'cpu', 0, array.dtype.type, array.shape, array.ctypes.data)
            arrays[node.name] = array
        return arrays

    def fill(self, name: str, value: np.ndarray) -> None:
        """
        Write an input.

        :param value: shaped as the input without its batch of one.
        :raises ValueError: for another shape.
        """
        target = self.inputs[name]
        if value.shape != target.shape[1:]:
            raise ValueError(f'{name}: expected shape {target.shape[1:]}, came {value.shape}')
        target[0] = value

    def run(self) -> None:
        """Compute the outputs from what the input arrays hold."""
        self._session.run_with_iobinding(self._binding)


class OnnxStep:
    """The exported policy step; the counterpart of `NumpyStep` for every core and head."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 1):
        self._version, self._threads = checkpoint.version, threads
        self._observe = checkpoint.exports.get('observe.onnx')
        self._graph = OnnxGraph(checkpoint.export('step.onnx'), threads, 'step.onnx')
        self._observer: OnnxGraph | None = None
        self.state_size = self._graph.inputs['state'].shape[1]
        self.horizon = self._graph.outputs['means'].shape[2]
        self._noise = self._graph.inputs.get('noise')
        self._split = self._graph.inputs['features'].shape[1] \
            if 'features' in self._graph.inputs else 0
        self.observed = np.zeros(self._split + self._graph.inputs['vector'].shape[1], np.float32)

    @property
    def samples(self) -> bool:
        """Whether the head draws samples."""
        return self._noise is not None

    def seed(self, seed: int) -> None:
        """Start the noise of heads that draw samples anew."""
        self._random = np.random.Generator(np.random.SFC64(seed))

    def observe(self, elapsed: float, state: np.ndarray) -> np.ndarray:
        """
        Return the next state only, see `NumpyStep.observe`.

        :raises CheckpointError: if the checkpoint is from before this was exported.
        """
        if self._observer is None:
            if self._observe is None:
                raise CheckpointError(f'checkpoint {self._version!r}: expected the exported file '
                                      "'observe.onnx', came none; export it with the train "
                                      'command')
            self._observer = OnnxGraph(self._observe, self._threads, 'observe.onnx')
        self._run(self._observer, elapsed, state)
        return self._observer.outputs['next_state'][0].copy()

    def step(self, elapsed: float, state: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return next state, weights, means, scales and the estimate, as `NumpyStep.step`."""
        if self._noise is not None:
            self._random.standard_normal(dtype=np.float32, out=self._noise)
        self._run(self._graph, elapsed, state)
        outputs = self._graph.outputs
        # Copies: the graph's memory is written again at the next step.
        return tuple(outputs[name][0].copy() for name in (
            'next_state', 'weights', 'means', 'scales', 'estimate_mean', 'estimate_scale'))

    def _run(self, graph: OnnxGraph, elapsed: float, state: np.ndarray) -> None:
        # A graph has only the inputs that it uses.
        for name, value in (('features', self.observed[:self._split]),
                            ('vector', self.observed[self._split:]),
                            ('elapsed', elapsed), ('state', state)):
            if name in graph.inputs:
                graph.inputs[name][0] = value
        graph.run()
