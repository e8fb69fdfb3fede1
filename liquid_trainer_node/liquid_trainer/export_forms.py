"""
A checkpoint in the forms that other run times take, each checked on recorded data.

ONNX in float32, float16 and int8 (the encoder, calibrated with recorded images), torch.export
and TorchScript; the lines that build TensorRT engines from the ONNX files; and a checkpoint whose
encoder is the int8 one, for the nodes and for `evaluate`. What each form loses is measured against
torch on the bags and written to `report.json`. Run it as

    docker/in_environment.sh export manipulator.safetensors --bags recordings -o exported
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liquid_policy.checkpoint import Checkpoint, load_checkpoint
from liquid_policy.command import command
from liquid_policy.export import ENCODER, OBSERVE, STEP, to_policy
from liquid_policy.policy import Policy
from liquid_policy.runtime import EncoderRuntime, PolicyRuntime
from liquid_trainer.bags import Episode, read_episodes

# The float32 forms equal torch within this; relatively where numbers are greater than 1.
TOLERANCE = 1e-5
PRECISIONS = ('fp32', 'fp16', 'int8')
# Left in float: the first layer, which reads depth in metres, and the last, whose softmax over the
# picture turns small errors into centimetres.
_KEPT_FLOAT = 2

_TICKS = 500        # of the first episode, that steps are checked with

Images = Sequence[tuple[np.ndarray, np.ndarray]]


def to_float16(graph: bytes) -> bytes:
    """Return an ONNX graph that computes in float16; inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    model = convert_float_to_float16(onnx.load_from_string(graph), keep_io_types=True)
    return model.SerializeToString()


def folded(graph: bytes) -> bytes:
    """Return an ONNX graph with all constants computed; a shared bias is a node until then."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'folded.onnx'
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
        return path.read_bytes()


def to_int8(graph: bytes, images: Images) -> bytes:
    """
    Return an encoder whose convolutions are 8-bit integers, static and per channel.

    :param graph: float32 ONNX, see `export_encoder`.
    :param images: colour uint8 `(height, width, 3)` and depth float32 `(height, width)` [m] to
        find the ranges of all layers with; some tens, of all that the robot sees.
    :raises ValueError: without images.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    if not images:
        raise ValueError('int8: expected recorded images to calibrate with, came none; give bags '
                         'with --bags')

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict | None:
            pair = next(self._left, None)
            return None if pair is None else {'color': pair[0][None], 'depth': pair[1][None]}

    model = onnx.load_from_string(folded(graph))
    convolutions = [node.name for node in model.graph.node if node.op_type == 'Conv']
    kept = [convolutions[0], *_last_of(model, convolutions)][:_KEPT_FLOAT]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / 'float.onnx', Path(folder) / 'int8.onnx'
        source.write_bytes(model.SerializeToString())
        quantize_static(
            str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=['Conv'], nodes_to_exclude=kept)
        return target.read_bytes()


def _last_of(model: Any, convolutions: list[str]) -> list[str]:
    """The convolution that the softmax over the picture hangs on."""
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == 'Softmax':
            while node is not None and node.op_type != 'Conv':
                node = producers.get(node.input[0])
            if node is not None and node.name in convolutions:
                return [node.name]
    return []


class _Step(torch.nn.Module):
    """The policy step with plain tensors, as torch.export and TorchScript take it."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor, elapsed: torch.Tensor,
                state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        after, answer = self.policy.step(observation, elapsed, state)
        mixture = answer.mixture
        return (after, mixture.weights, mixture.means, mixture.deviations, answer.estimate_mean,
                answer.estimate_scale)


def torch_forms(policy: Policy, folder: Path) -> dict[str, str]:
    """
    Write torch.export and TorchScript forms of encoder and step.

    :return: what became of each file, by name: `written`, or why it could not be made.
    """
    settings = policy.settings
    parts: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {}
    if settings.encoder is not None:
        shape = (1, settings.encoder.height, settings.encoder.width_pixels)
        parts['encoder'] = (policy.encoder, (torch.zeros(*shape, 3, dtype=torch.uint8),
                                             torch.ones(shape)))
    if not policy.head.noise_shape:
        parts['step'] = (_Step(policy), (torch.zeros(1, settings.input_size),
                                         torch.full((1, 1), 0.01), policy.initial_state()))
    found = {}
    for name, (module, inputs) in parts.items():
        module.eval()
        for ending, write in (('pt2', _write_exported), ('ts', _write_traced)):
            path = folder / f'{name}.{ending}'
            try:
                write(module, inputs, path)
                found[path.name] = 'written'
            except Exception as error:  # noqa: BLE001 - torch's exporters raise anything
                found[path.name] = f'not made: {str(error).splitlines()[0]}'
    return found


def _write_exported(module: torch.nn.Module, inputs: tuple, path: Path) -> None:
    with torch.no_grad():
        torch.export.save(torch.export.export(module, inputs, strict=False), str(path))


def _write_traced(module: torch.nn.Module, inputs: tuple, path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(module, inputs, check_trace=False).save(str(path))


def images_of(episodes: Sequence[Episode], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return colour and depth of at most `count` images, evenly out of all episodes."""
    pairs = [(episode, index) for episode in episodes for index in range(len(episode.colors))]
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    found = []
    for episode, index in (pairs[place] for place in np.unique(chosen)):
        color = episode.colors[index]
        depth = episode.depths[index] if len(episode.depths) else np.zeros(color.shape[:2],
                                                                           np.float32)
        found.append((np.ascontiguousarray(color), np.ascontiguousarray(depth, np.float32)))
    return found


def features_in_torch(policy: Policy, images: Images) -> np.ndarray:
    """Return the encoder's features in torch, `(N, size)`."""
    with torch.no_grad():
        return np.stack([policy.encoder(torch.from_numpy(color)[None],
                                        torch.from_numpy(depth)[None])[0].numpy()
                         for color, depth in images])


def difference(came: np.ndarray, right: np.ndarray) -> float:
    """Return the largest difference; of numbers beyond 1 relative to them, as rounding errors."""
    return float((np.abs(came - right) / np.maximum(1.0, np.abs(right))).max())


def encoder_loss(checkpoint: Checkpoint, images: Images, right: np.ndarray) -> dict[str, float]:
    """
    Return how far an exported encoder is from torch.

    :param right: features in torch, `(N, size)`.
    :return: `largest` (see `difference`) and `median` absolute difference, and `share`: the root
        mean square difference as a share of the features' own spread over the images.
    """
    runtime = EncoderRuntime(checkpoint)
    wrong = np.stack([runtime.encode(*pair) for pair in images]) - right
    spread = float(np.sqrt(np.mean(np.var(right, axis=0)))) or 1.0
    return {'largest': difference(wrong + right, right),
            'median': float(np.median(np.abs(wrong))),
            'share': float(np.sqrt(np.mean(wrong ** 2)) / spread)}


def step_loss(policy: Policy, checkpoint: Checkpoint, episode: Episode, features: np.ndarray,
              engine: str) -> dict[str, float]:
    """
    Return how far a run-time form is from torch on a recorded episode, see `difference`.

    `step`: of one step from the same state, which rounding alone explains. `drift`: of two runs
    that each carry their own state; a policy with memory may make more of rounding errors.

    :param features: of the episode's images, `(N, size)`.
    :param engine: see `PolicyRuntime`.
    """
    runtime = PolicyRuntime(checkpoint, engine=engine)
    state, other = runtime.initial_state(), policy.initial_state()
    elapsed = np.diff(episode.times[:_TICKS], prepend=episode.times[0] - 0.01)
    loss = {'step': 0.0, 'drift': 0.0}
    nothing = np.zeros(0, np.float32)
    for tick, gap in enumerate(elapsed):
        seen, vector = nothing, episode.vectors[tick]
        if len(features):
            seen = features[episode.image_index[tick]]
        after, came = runtime.step(seen, vector, float(gap), other[0].numpy())
        state, drifted = runtime.step(seen, vector, float(gap), state)
        with torch.no_grad():
            observed = torch.from_numpy(np.concatenate((seen, vector)))[None]
            other, right = policy.step(observed, torch.tensor([[gap]], dtype=torch.float32), other)
        mixture = right.mixture
        for name, reached, answer in (('step', after, came), ('drift', state, drifted)):
            for mine, theirs in ((reached, other), (answer.means, mixture.means),
                                 (answer.weights, mixture.weights),
                                 (answer.scales, mixture.deviations)):
                loss[name] = max(loss[name], difference(mine, theirs[0].numpy()))
    return loss


def tensorrt_lines(names: Sequence[str]) -> list[str]:
    """Return the lines that build TensorRT engines; all shapes are fixed in the files."""
    lines = []
    for name in names:
        precision = name.split('.')[-2]
        flags = {'fp32': '', 'fp16': ' --fp16', 'int8': ' --int8 --fp16'}.get(precision, '')
        lines.append(f'trtexec --onnx={name} --saveEngine={name.removesuffix(".onnx")}.engine'
                     f'{flags} --memPoolSize=workspace:256 --skipInference')
    return lines


def export(checkpoint: Checkpoint, episodes: Sequence[Episode], folder: Path,
           precisions: Sequence[str] = PRECISIONS, calibration: int = 100) -> dict[str, Any]:
    """
    Write all forms and say what each loses.

    :param episodes: recorded; what is checked and calibrated with. Their interface is the
        checkpoint's.
    :param folder: is made.
    :param calibration: images for the ranges of int8; as many others are checked with.
    :return: what `report.json` holds.
    :raises ValueError: if a float32 form differs from torch by more than `TOLERANCE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    policy = to_policy(checkpoint)
    report: dict[str, Any] = {'version': checkpoint.version, 'files': {}}
    for name in (STEP, OBSERVE):
        if name in checkpoint.exports:
            target = name.replace('.onnx', '.fp32.onnx')
            (folder / target).write_bytes(checkpoint.exports[name])
            report['files'][target] = {}
    features = np.zeros((0, 0), np.float32)
    images = images_of(episodes, 2 * calibration)
    if ENCODER in checkpoint.exports:
        right = features_in_torch(policy, images[1::2])
        makers: dict[str, Callable[[bytes], bytes]] = {
            'fp32': lambda graph: graph, 'fp16': to_float16,
            'int8': lambda graph: to_int8(graph, images[::2])}
        for precision in precisions:
            graph = makers[precision](checkpoint.exports[ENCODER])
            target = f'encoder.{precision}.onnx'
            (folder / target).write_bytes(graph)
            changed = replace(checkpoint, version=f'{checkpoint.version}-{precision}',
                              exports={**checkpoint.exports, ENCODER: graph})
            report['files'][target] = {'bytes': len(graph),
                                       **encoder_loss(changed, images[1::2], right)}
            if precision == 'int8':
                changed.save(folder / 'int8.safetensors')
                report['files']['int8.safetensors'] = {}
        loss = report['files'].get('encoder.fp32.onnx', {}).get('largest', 0.0)
        _require_equal('encoder.fp32.onnx', loss)
    if episodes and not policy.head.noise_shape:
        episode = episodes[0]
        if ENCODER in checkpoint.exports:
            runtime = EncoderRuntime(checkpoint)
            features = np.stack([runtime.encode(color, depth) for color, depth in zip(
                episode.colors, episode.depths, strict=True)])
        for engine in ('onnx', PolicyRuntime(checkpoint).engine):
            found = step_loss(policy, checkpoint, episode, features, engine)
            report.setdefault('step', {})[engine] = found
            _require_equal(f'step ({engine})', found['step'])
    report['torch'] = torch_forms(policy, folder)
    report['tensorrt'] = tensorrt_lines(
        [name for name in report['files'] if name.endswith('.onnx')])
    (folder / 'tensorrt.sh').write_text(
        '#!/bin/sh\n# Run on the device itself: an engine fits one kind of GPU only.\n'
        + '\n'.join(report['tensorrt']) + '\n')
    (folder / 'report.json').write_text(json.dumps(report, indent=1) + '\n')
    return report


def _require_equal(name: str, loss: float) -> None:
    if not loss <= TOLERANCE:
        raise ValueError(f'{name}: expected to equal torch within {TOLERANCE:g}, differs by '
                         f'{loss:g}; export the checkpoint again with this version')


def lines_of(report: dict[str, Any]) -> Iterator[str]:
    """Say what was written and what it loses."""
    for name, loss in report['files'].items():
        yield name + ('' if 'share' not in loss else (
            f': {loss["bytes"] / 1e6:.2f} MB, features differ by {loss["median"]:.1e} (median), '
            f'{loss["largest"]:.1e} (largest), {loss["share"]:.2%} of their spread'))
    for engine, loss in report.get('step', {}).items():
        yield (f'step by {engine}: differs from torch by {loss["step"]:.1e} at most, after '
               f'{_TICKS} steps of its own by {loss["drift"]:.1e}')
    for name, what in report['torch'].items():
        yield f'{name}: {what}'
    yield 'TensorRT engines, on the device (tensorrt.sh):'
    yield from (f'  {line}' for line in report['tensorrt'])


@command('export')
def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='export', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--bags', type=Path, nargs='+', default=[],
                        help='recorded data to calibrate and to check with')
    parser.add_argument('-o', '--output', type=Path, default=Path('exported'))
    parser.add_argument('--precisions', nargs='+', choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument('--calibration', type=int, default=100, help='images for int8')
    options = parser.parse_args(argv)
    checkpoint = load_checkpoint(options.checkpoint)
    episodes = read_episodes(options.bags, checkpoint.interface) if options.bags else []
    precisions = options.precisions if episodes else [
        name for name in options.precisions if name != 'int8']
    if precisions != options.precisions:
        print('without --bags nothing can be calibrated or checked: no int8', file=sys.stderr)
    report = export(checkpoint, list(episodes), options.output, precisions,
                    options.calibration)
    print('\n'.join(lines_of(report)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
