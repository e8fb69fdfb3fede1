"""How good a policy is on episodes it has not learned from."""

from __future__ import annotations

import numpy as np
import torch

from liquid_policy.mixture import Mixture
from liquid_policy.policy import Policy
from liquid_trainer.windows import Demonstrations


def held_out_scores(policy: Policy, data: Demonstrations, features: np.ndarray,
                    target_units: tuple[str, ...], stride: int = 5) -> dict[str, float]:
    """
    Return the policy's scores on whole episodes, run from their start with the carried state.

    :param policy: in evaluation mode.
    :param data: held-out demonstrations.
    :param features: of all their images, `(images, size)`.
    :param target_units: metres are scored as one position, metres per second as one speed.
    :param stride: ticks from one score to the next.
    :return: `nll` per number of a chunk (of a head without a density, its loss), `action_error`
        (mean absolute error of the heaviest component, normalised), `position_error` (median,
        m), `position_error_mean` (m), `speed_error` (median, m/s), `coverage` (share of targets
        within two standard deviations) and `effective_components`.
    """
    made = policy.settings.head
    sums = {'nll': 0.0, 'action_error': 0.0}
    count, usage = 0, torch.zeros(1)
    generator = torch.Generator().manual_seed(0)    # heads that sample score alike every time
    errors, inside = [], []
    with torch.inference_mode():
        for begin, end in zip(data.bounds[:-1], data.bounds[1:], strict=True):
            ticks = np.arange(begin, end)
            x = policy.normalise(torch.cat((torch.from_numpy(features[data.images[ticks]]),
                                            torch.from_numpy(data.vectors[ticks])), 1))
            outputs, _ = policy.core.sequence(
                x[None], torch.from_numpy(data.elapsed[ticks])[None, :, None],
                policy.initial_state())
            at = ticks[::stride]
            answer, mean, scale = policy.heads(outputs[0, ::stride], x[::stride])
            chunk, known = data.chunks(at, made.horizon, made.dt)
            observed = torch.from_numpy(np.concatenate(
                (features[data.images[at]], data.vectors[at]), 1))
            chunk = policy.action_scaling(torch.from_numpy(chunk) - policy.origin(observed))
            mixture = policy.head.distribution(answer,
                                               policy.head.draw_noise(len(at), generator))
            sums['nll'] += float(policy.head.loss(answer, chunk, torch.from_numpy(known),
                                                  generator)) * len(at)
            sums['action_error'] += float(mixture.best_error(chunk).mean()) * len(at)
            count += len(at)
            usage = usage + mixture.weights.sum(0)
            error = policy.target_scaling.inverse(mean).numpy() - data.targets[at]
            errors.append(error)
            inside.append(np.abs(error) < 2 * (scale * policy.target_scaling.scale).numpy())
    scores = {name: value / count for name, value in sums.items()}
    average = Mixture((usage / count).log()[None], torch.empty(0), torch.empty(0))
    scores['effective_components'] = float(average.effective_components())
    return scores | _target_scores(np.concatenate(errors), np.concatenate(inside), target_units)


def _target_scores(errors: np.ndarray, inside: np.ndarray,
                   units: tuple[str, ...]) -> dict[str, float]:
    scores = {}
    for name, unit in (('position_error', 'm'), ('speed_error', 'm/s')):
        columns = [index for index, came in enumerate(units) if came == unit]
        if not columns:
            continue
        length = np.linalg.norm(errors[:, columns], axis=1)
        length = length[np.isfinite(length)]
        if len(length):
            scores[name] = float(np.median(length))
            scores[f'{name}_mean'] = float(length.mean())
    known = np.isfinite(errors)
    if known.any():
        scores['coverage'] = float(inside[known].mean())
    return scores


def frame_scores(policy: Policy, head, data: Demonstrations, features: np.ndarray,
                 target_units: tuple[str, ...]) -> dict[str, float]:
    """
    Return how well single images tell the targets, through the learner's linear head.

    :param head: the learner's `FrameHead`.
    :param features: of all images, `(images, size)`.
    """
    with torch.inference_mode():
        mean = head.targets(torch.from_numpy(features[data.frame_images]))
        mean = policy.target_scaling.inverse(mean).numpy()
    errors = mean - data.targets[data.frame_stamped]
    scores = _target_scores(errors, np.zeros(errors.shape, bool), target_units)
    return {f'frame_{name}': value for name, value in scores.items()
            if name.startswith('position')}
