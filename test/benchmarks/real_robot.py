"""
What does a policy learn from a real robot's published data set?

The data set is imported to bags, `train` learns from nine tenths of the episodes, and the policy
foretells the actions of the rest: at every fifth tick, with the state it has carried along from
the episode's start, the chunk of its heaviest component. Beside it stand what needs no learning:
`hold-pose` (stay where the joints are), `last-action` (go on as told last) and `constant-speed`
(go on at the pace of the last 0.1 s). Errors are means of absolute values over the chunk's steps
within the episode, of numbers in radians (arms) and of those without a unit (hands, 0 to 1)
separately; intervals are over episodes, by bootstrap.

Data: github.com/YifanTian07/G1-policy-train, a LeRobot data set (v2.1); docs/formats.md says how
it is imported. With bags and interface made and a policy trained:

    docker/in_environment.sh python3 test/benchmarks/real_robot.py --write --bags runs/g1 \\
        --interface runs/g1/interface.yaml --checkpoint runs/g1_policy/checkpoint.safetensors
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.export import to_policy
from liquid_policy.interface import load_interface
from liquid_policy.policy import Policy
from liquid_sim.evaluate import append_rows, commit
from liquid_trainer.building import positions_of_actions
from liquid_trainer.cache import cached_episodes
from liquid_trainer.learner import encode_images
from liquid_trainer.windows import Demonstrations, split_episodes

RESULTS = Path(__file__).parent / 'results' / 'real_robot.jsonl'
STRIDE, PACE = 5, 0.1       # ticks from one forecast to the next; pace is measured over [s]


def forecasts(policy: Policy, data: Demonstrations, episode: int, features: np.ndarray,
              own: tuple[int, ...]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """
    Return what each foretells at an episode's ticks, what was done, and which of it counts.

    :param features: of all images, `(images, size)`.
    :param own: where in the vector each action's present value is.
    :return: forecasts by name and truth `(ticks, horizon, actions)`; bool `(ticks, horizon)`.
    """
    made = policy.settings.head
    ticks = np.arange(*data.bounds[episode:episode + 2])
    observed = torch.from_numpy(np.concatenate(
        (features[data.images[ticks]], data.vectors[ticks]), 1))
    with torch.inference_mode():
        x = policy.normalise(observed)
        outputs, _ = policy.core.sequence(x[None], torch.from_numpy(data.elapsed[ticks])[
            None, :, None], policy.initial_state())
        back = round(PACE / data.tick)
        rows = np.arange(back, len(ticks), STRIDE)
        answer, _, _ = policy.heads(outputs[0, rows], x[rows])
        mixture = policy.head.distribution(answer, policy.head.draw_noise(
            len(rows), torch.Generator().manual_seed(0)))
        chunk = policy.action_scaling.inverse(mixture.heaviest()) + policy.origin(observed[rows])
    truth, inside = data.chunks(ticks[rows], made.horizon, made.dt)
    ahead = made.dt / data.tick * np.arange(1, made.horizon + 1)[:, None]
    last = data.actions[ticks[rows] - 1][:, None]
    pace = (last - data.actions[ticks[rows] - 1 - (back - 1)][:, None]) / (back - 1)
    return {'policy': chunk.numpy(), 'hold-pose': np.broadcast_to(
        data.vectors[ticks[rows]][:, None, own], truth.shape),
        'last-action': np.broadcast_to(last, truth.shape),
        'constant-speed': last + pace * ahead}, truth, inside


def interval(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Return the weighted mean of episodes' errors and its 95 % interval by bootstrap."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (2000, len(values)))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float((values * weights).sum() / weights.sum()), float(low), float(high)


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bags', nargs='+', type=Path, required=True)
    parser.add_argument('--interface', type=Path, required=True)
    parser.add_argument('--checkpoint', type=Path, required=True)
    parser.add_argument('--cache', type=Path, default=Path('runs/cache'))
    parser.add_argument('--write', action='store_true', help=f'into {RESULTS.name}')
    arguments = parser.parse_args()
    checkpoint, interface = load_checkpoint(arguments.checkpoint), load_interface(
        arguments.interface)
    policy, card = to_policy(checkpoint).eval(), checkpoint.card
    own = positions_of_actions(interface)
    if not own:
        raise SystemExit(f'{arguments.interface}: expected every action among the observed '
                         'numbers, by name and unit, to compare with holding still')
    episodes = cached_episodes(arguments.bags, interface, arguments.cache)
    learning = card['learning']
    _, held = split_episodes(episodes.names, learning['held_out'], learning['seed'])
    data = Demonstrations(episodes.chosen(held), 1.0 / interface.rate)
    features = (encode_images(policy, data) if policy.encoder is not None
                else np.zeros((1, 0), np.float32))
    units = np.array(interface.action_units)
    errors: dict[tuple[str, str], list[float]] = {}
    counts = []
    for episode in range(len(held)):
        told, truth, inside = forecasts(policy, data, episode, features, own)
        counts.append(inside.sum())
        for name, chunk in told.items():
            apart = np.abs(chunk - truth)[inside]
            for unit in sorted(set(units)):
                errors.setdefault((name, unit), []).append(float(apart[:, units == unit].mean()))
    made = policy.settings.head
    seen = f'{card["images"]} images' if card['images'] else 'without images'
    task = (f'{interface.robot}, {card["episodes"]} episodes, {interface.vector_size} numbers '
            f'observed, {seen}')
    print(f'{task}; {len(held)} held out; {made.horizon} steps of {made.dt:.4f} s')
    rows = []
    for (name, unit), values in errors.items():
        value, low, high = interval(np.array(values), np.array(counts, float))
        print(f'{name:15} {value:.4f} {unit:4} ({low:.4f} to {high:.4f})')
        rows.append({
            'figure': 'action_error', 'task': f'{task}, {unit}', 'policy': (
                policy.settings.name if name == 'policy' else name), 'value': value, 'low': low,
            'high': high, 'unit': unit, 'n': len(held), 'seeds': [learning['seed']],
            'preset': f'{card["seconds_of_training"] / 60:.0f} min of training',
            'commit': commit(), 'machine': platform.machine(), 'date': f'{date.today()}'})
    if arguments.write:
        append_rows(RESULTS, rows)
    else:
        print(json.dumps(rows[0]))


if __name__ == '__main__':
    main()
