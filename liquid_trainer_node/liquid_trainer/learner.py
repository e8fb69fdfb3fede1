"""Learn a policy from demonstrations: single images first, then the core, then all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.policy import Policy
from liquid_trainer.augment import augment_images
from liquid_trainer.average import update_average
from liquid_trainer.parallel import Group, average_gradient
from liquid_trainer.safe_actions import SafeActions
from liquid_trainer.settings import STAGES, LearningSettings
from liquid_trainer.windows import Demonstrations, Streams

# Smallest scales of normalised actions and targets, per unit: below it, a dimension counts as
# resting and its noise is not blown up. 5 % of these is the narrowest Gaussian.
_LEAST = {'rad/s': 0.1, 'm/s': 0.05, 'rad': 0.05, 'm': 0.02, '1': 0.25}


# Share of the frames stage after which batch norm's statistics are fixed.
_NORM_FIXED = 0.6
# The first key point's map may cover a part: half of its size, and a cell of the map [m].
_LEAST_REACH = 0.03
# What a loss may be made of, by stage and settings.
_PARTS = ('nll', 'estimate', 'balance', 'unsafe', 'where', 'there', 'act', 'look')


class FrameHead(nn.Module):
    """
    What a single image is asked during learning: where the part is, and what to do now.

    The first key point is the part's own. Its map learns slowly from the expectation alone, so
    it is told where to look: at the cells whose measured point, brought into the robot's frame,
    is near the part. The way from camera to robot (12 numbers) is learned along with it, and
    how near is near follows from how well that works so far, so nothing has to be calibrated.

    :param where: columns of the targets that are a position; the hint needs three.
    """

    def __init__(self, features: int, vector: int, targets: int, actions: int,
                 where: tuple[int, ...] = ()):
        super().__init__()
        self.targets = nn.Linear(features, targets)
        self.present = nn.Linear(features, targets)
        self.actions = nn.Sequential(nn.Linear(features + vector, 96), nn.SiLU(),
                                     nn.Linear(96, actions))
        self.where = list(where) if len(where) == 3 else []
        self.camera = nn.Linear(3, 3)
        self.register_buffer('reach', torch.tensor(0.5))
        self.register_buffer('fitted', torch.tensor(False))

    def loss(self, features: Tensor, vector: Tensor, targets: Tensor,
             actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Return the loss and its parts; everything is normalised.

        :param targets: NaN where absent, `(batch, targets)`.
        """
        self.fitted.fill_(True)
        known = torch.isfinite(targets)
        mean = self.targets(features)
        error = torch.where(known, targets, mean.detach()) - mean
        # Absolute errors, so that the small ones still count: the goal is millimetres.
        where = (functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.02,
                                           reduction='none').sum() / known.sum().clamp_min(1))
        there = where.new_zeros(()) if not known.numel() else (
            functional.binary_cross_entropy_with_logits(self.present(features), known.float()))
        act = functional.smooth_l1_loss(self.actions(torch.cat((features, vector), 1)), actions,
                                        beta=0.2)
        return where + 0.1 * there + 0.3 * act, {'where': where, 'there': there, 'act': act}

    def look(self, attention: Tensor, cells: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        """
        Return how badly the first map looks at the part, and how badly the camera is known.

        :param attention: of the encoder's `look`, `(batch, points, cells)`.
        :param cells: likewise, `(batch, 3, cells)`.
        :param targets: normalised, NaN where absent, `(batch, targets)`.
        :param scale: metres per normalised unit, `(targets,)`.
        """
        position, scale = targets[:, self.where], scale[self.where]
        seen = torch.isfinite(position).all(1)
        if not bool(seen.any()):
            return attention.new_zeros(())
        attention, cells, position = attention[seen, 0], cells[seen], position[seen]
        point = torch.matmul(cells, attention.unsqueeze(-1)).squeeze(-1)
        error = (self.camera(point) - position).abs()
        with torch.no_grad():
            self.reach.lerp_((error * scale).square().sum(1).sqrt().median(), 0.05)
            reach = self.reach.clamp(_LEAST_REACH, 0.3)
            placed = self.camera(cells.transpose(1, 2))                    # (batch, cells, 3)
            distance = ((placed - position.unsqueeze(1)) * scale).square().sum(-1)
            near = torch.exp(-0.5 * distance / reach.square()) * (cells[:, 2] > 0)
            # A part that is hidden or out of view has no cell to look at.
            visible = (near.max(1).values > 0.3).float()
        hit = -torch.log((attention * near).sum(1) + 1e-3)
        camera = functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.05)
        return 0.15 * (hit * visible).mean() + camera


def fit_scaling(policy: Policy, data: Demonstrations, action_units: tuple[str, ...],
                target_units: tuple[str, ...]) -> None:
    """Set the policy's scales of vectors, actions and targets from the demonstrations."""
    def least(units: tuple[str, ...]) -> np.ndarray:
        return np.array([_LEAST.get(unit, 1e-2) for unit in units])

    moved = _some(data.actions)
    if policy.settings.relative:
        moved = moved - _some(data.vectors[:, policy.settings.relative])
    policy.action_scaling.fit(moved, least(action_units))
    known = np.isfinite(data.targets).any(0)
    if known.all() and data.targets.shape[1]:
        policy.target_scaling.fit(_some(data.targets), least(target_units))
    size = policy.settings.feature_size
    policy.input_scaling.center[size:], policy.input_scaling.scale[size:] = _scales(data.vectors)


def fit_feature_scaling(policy: Policy, features: np.ndarray) -> None:
    """Set the policy's scales of features from those of the demonstrations' images."""
    size = policy.settings.feature_size
    policy.input_scaling.center[:size], policy.input_scaling.scale[:size] = _scales(features)


def _scales(samples: np.ndarray) -> tuple[Tensor, Tensor]:
    from liquid_policy.policy import Scaling
    scaling = Scaling(samples.shape[1])
    scaling.fit(_some(samples), 1e-3)
    return scaling.center, scaling.scale


def _some(samples: np.ndarray, most: int = 4_000_000) -> np.ndarray:
    """Return rows from everywhere, at most so many numbers: percentiles need no more."""
    return samples[::-(-samples.size // most) or 1]


def encode_images(policy: Policy, data: Demonstrations, numbers: np.ndarray | None = None,
                  seed: int | None = None, batch: int = 64,
                  progress: Callable[[int], None] | None = None,
                  out: np.ndarray | None = None) -> np.ndarray:
    """
    Return the features of images, `(images, size)` float32.

    :param numbers: which images; all when left out.
    :param seed: of random changes to every second image, so that what is learned from the
        features holds for other light and noise; no changes when left out.
    :param progress: called with the number of images after each batch.
    :param out: what is returned, to be filled; a new array when left out.
    """
    numbers = np.arange(data.image_count) if numbers is None else numbers
    generator = torch.Generator().manual_seed(seed or 0)
    policy.encoder.eval()
    if out is None:
        out = np.empty((len(numbers), policy.settings.feature_size), np.float32)
    with torch.inference_mode():
        for begin in range(0, len(numbers), batch):
            color, depth = map(torch.from_numpy, data.read_images(numbers[begin:begin + batch]))
            if seed is not None:
                changed = augment_images(color[1::2], depth[1::2], generator)
                color = color.float()
                color[1::2], depth[1::2] = changed
            out[begin:begin + batch] = policy.encoder(color, depth).numpy()
            if progress:
                progress(len(color))
    return out


class Learner:
    """
    The three stages' steps; whoever calls it keeps the time.

    :param policy: to be learned; its scales must be set.
    :param data: demonstrations to learn from.
    :param settings: how.
    :param where: columns of the targets that are a position [m].
    :param group: the processes that learn together; each takes its shards of every batch.

    Every random number comes from `(seed, stage, step)`, and the shard where there are several,
    so a learner that is stopped, saved and loaded goes on as if nothing had happened.
    """

    def __init__(self, policy: Policy, data: Demonstrations, settings: LearningSettings,
                 where: Sequence[int] = (), group: Group | None = None):
        self.policy, self.data, self.settings = policy, data, settings
        self.group = group or Group()
        self.group.own(settings.shards)
        torch.manual_seed(settings.seed)
        made = policy.settings
        self.frame_head = FrameHead(made.feature_size, made.vector_size, made.target_size,
                                    made.action_size, tuple(where))
        if policy.encoder is not None:
            policy.encoder.to(memory_format=torch.channels_last)
        self.safe: SafeActions | None = None        # makes actions safe before they are judged
        self.features: np.ndarray | None = None     # of all images, every second one changed
        self.begin(STAGES[0] if policy.encoder is not None else 'core')

    def begin(self, stage: str) -> None:
        """
        Make ready for a stage's first step.

        :raises ValueError: if the stage is unknown, or features are needed and missing.
        """
        if stage not in STAGES:
            raise ValueError(f'stage: expected one of {STAGES}, came {stage!r}')
        self.stage, self.step_count = stage, 0
        settings, policy = self.settings, self.policy
        if policy.encoder is None and stage != 'core':
            raise ValueError(f'stage: expected core for a policy without images, came {stage!r}')
        encoder = [] if policy.encoder is None else [
            *policy.encoder.parameters(), *self.frame_head.parameters()]
        rest = [*policy.core.parameters(), *policy.head.parameters(),
                *policy.estimate.parameters()]
        trained = {'frames': [(encoder, settings.frame_rate)],
                   'core': [(rest, settings.core_rate),
                            ([] if policy.encoder is None else
                             [*self.frame_head.parameters()], settings.core_rate)],
                   'joint': [(encoder, settings.joint_rate), (rest, 2 * settings.joint_rate)]}
        for parameter in encoder + rest:
            parameter.requires_grad_(False)
        groups = []
        for parameters, rate in trained[stage]:
            for parameter in parameters:
                parameter.requires_grad_(True)
            # Biases, norms and time constants are not pulled to zero.
            for chosen, decay in (([p for p in parameters if p.ndim > 1], settings.weight_decay),
                                  ([p for p in parameters if p.ndim <= 1], 0.0)):
                groups.append({'params': chosen, 'lr': rate, 'full_rate': rate,
                               'weight_decay': decay})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        self.average = {name: value.detach().clone()
                        for name, value in policy.state_dict().items()}
        self.streams: Streams | None = None
        if stage != 'frames':
            window = settings.core_window if stage == 'core' else settings.joint_window
            batch = settings.core_batch if stage == 'core' else settings.joint_batch
            self.streams = Streams(self.data, batch, max(2, round(window / self.data.tick)),
                                   settings.seed + STAGES.index(stage))
            self.carried = policy.initial_state(batch).clone()

    def step(self, progress: float) -> dict[str, float]:
        """
        Take one step of the stage.

        :param progress: share of the stage that is behind, 0 to 1; sets the learning rate.
        :return: loss and its parts.
        """
        self.step_count += 1
        self._progress = progress
        rate = self._schedule(progress)
        for group in self.optimizer.param_groups:
            group['lr'] = group['full_rate'] * rate
        if self.streams is not None:
            self._drawn = self.streams.draw()
        trained = [p for group in self.optimizer.param_groups for p in group['params']]
        # Only in `frames` does batch norm change what it knows of the images.
        buffers = [*self.frame_head.buffers(),
                   *(self.policy.encoder.buffers() if self.stage == 'frames' else ())]
        loss, parts = average_gradient(self.group, self.settings.shards, trained, buffers,
                                       self._shard_loss, _PARTS)
        norm = float(nn.utils.clip_grad_norm_(trained, self.settings.clip))
        # One bad batch must not end the night's work: leave it out.
        if math.isfinite(norm):
            self.optimizer.step()
            update_average(self.average, self.policy, self.step_count,
                           self.settings.average)
        return {'loss': loss, 'rate': rate, 'gradient': norm, **parts}

    def gather(self) -> None:
        """Bring the states that all processes carry together, so that one can save them."""
        if self.streams is not None and self.group.size > 1:
            own = torch.zeros(len(self.carried), 1, dtype=torch.bool)
            for shard in self.group.own(self.settings.shards):
                own[self._rows(shard)] = True
            self.carried = self.group.add(torch.where(own, self.carried, 0.0))

    def finish(self) -> None:
        """Take the averaged weights as the policy's."""
        self.policy.load_state_dict(self.average)

    def _schedule(self, progress: float) -> float:
        warm = self.settings.warm_up
        if progress < warm:
            return 0.05 + 0.95 * progress / warm
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm)
                                                               / (1 - warm))))

    def _shard_loss(self, shard: int) -> tuple[Tensor, dict[str, Tensor]]:
        several = (shard,) if self.settings.shards > 1 else ()
        self._rng = np.random.default_rng((self.settings.seed, STAGES.index(self.stage),
                                           self.step_count, *several))
        self._generator = torch.Generator().manual_seed(int(self._rng.integers(1 << 62)))
        return self._frames_loss() if self.stage == 'frames' else self._window_loss(
            self._rows(shard))

    def _rows(self, shard: int) -> slice:
        """Return which streams are a shard's."""
        each = len(self.carried) // self.settings.shards
        return slice(shard * each, (shard + 1) * each)

    def _frames_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        policy, data = self.policy, self.data
        # Late in the stage batch norm keeps its statistics: without their noise the last
        # millimetres are learned, and a step takes two thirds of the time.
        policy.encoder.train(self._progress < _NORM_FIXED)
        rows = self._rng.integers(0, len(data.frame_images),
                                  self.settings.frame_batch // self.settings.shards)
        color, depth = map(torch.from_numpy, data.read_images(data.frame_images[rows]))
        color, depth = augment_images(color, depth, self._generator)
        features, attention, cells = policy.encoder.look(color, depth)
        loss, parts = self._frame_terms(features, rows)
        if self.frame_head.where:
            targets = policy.target_scaling(
                torch.from_numpy(data.targets[data.frame_stamped[rows]]))
            parts['look'] = self.frame_head.look(attention, cells, targets,
                                                 policy.target_scaling.scale)
            loss = loss + parts['look']
        return loss, parts

    def _frame_terms(self, features: Tensor, rows: np.ndarray):
        data, policy = self.data, self.policy
        size = policy.settings.feature_size
        used = data.frame_used[rows]
        vector = (torch.from_numpy(data.vectors[used]) - policy.input_scaling.center[size:]) \
            / policy.input_scaling.scale[size:]
        targets = policy.target_scaling(torch.from_numpy(data.targets[data.frame_stamped[rows]]))
        actions = policy.action_scaling(torch.from_numpy(
            data.actions[used] - self._origins(used)))
        return self.frame_head.loss(features, vector, targets, actions)

    def _window_loss(self, streams: slice) -> tuple[Tensor, dict[str, Tensor]]:
        policy, data, settings, rng = self.policy, self.data, self.settings, self._rng
        ticks, valid, fresh = (drawn[streams] for drawn in self._drawn)
        images = self._held_images(data.images[ticks], fresh)
        extra, parts = torch.zeros(()), {}
        if policy.encoder is None:
            features = torch.zeros((*ticks.shape, 0))
        elif self.stage == 'core':
            features = self._stored_features(images)
            assert self.features is not None
            # The encoder rests, so this keeps the single-image heads fitting and does no more.
            rows = rng.integers(0, len(data.frame_images), 256 // settings.shards)
            extra, parts = self._frame_terms(
                torch.from_numpy(self.features[data.frame_images[rows]]), rows)
        else:
            features, extra, parts = self._encoded_features(images)
        vectors = torch.from_numpy(data.vectors[ticks])
        x = policy.normalise(torch.cat((features, vectors), -1))
        noise = torch.randn(x.shape, generator=self._generator)
        noise[..., :features.shape[-1]] *= settings.feature_noise
        noise[..., features.shape[-1]:] *= settings.vector_noise
        x = x + noise
        elapsed, mask = self._missed_ticks(data.elapsed[ticks], valid)
        # Half of the episodes begin with whatever the state was: a robot that runs for hours
        # must find its way back from any state.
        forget = fresh & (rng.random(len(fresh)) < 0.5)
        state = torch.where(torch.from_numpy(forget)[:, None], policy.initial_state(len(fresh)),
                            self.carried[streams])
        outputs, state = policy.core.sequence(x, torch.from_numpy(elapsed)[..., None], state,
                                              torch.from_numpy(mask))
        self.carried[streams] = state.detach()
        chosen = np.arange(int(rng.integers(settings.loss_stride)), ticks.shape[1],
                           settings.loss_stride)
        keep = mask[:, chosen].reshape(-1)
        at = ticks[:, chosen].reshape(-1)[keep]
        mixture, mean, scale = policy.heads(outputs[:, chosen].flatten(0, 1)[keep],
                                            x[:, chosen].flatten(0, 1)[keep])
        if self.safe is not None:
            mixture, parts['unsafe'] = self.safe(mixture, at, policy.action_scaling, rng)
        nll, estimate = self._head_losses(mixture, mean, scale, at)
        balance = policy.head.balance(mixture)
        loss = (nll + settings.estimate_weight * estimate + settings.balance_weight * balance
                + (1.0 if self.stage == 'core' else settings.frame_weight) * extra)
        return loss, {'nll': nll, 'estimate': estimate, 'balance': balance, **parts}

    def _head_losses(self, mixture, mean: Tensor, scale: Tensor, ticks: np.ndarray):
        policy, made = self.policy, self.policy.settings.head
        chunk, inside = self.data.chunks(ticks, made.horizon, made.dt)
        chunk = chunk - self._origins(ticks)[:, None]
        nll = policy.head.loss(mixture, policy.action_scaling(torch.from_numpy(chunk)),
                               torch.from_numpy(inside), self._generator)
        targets = policy.target_scaling(torch.from_numpy(self.data.targets[ticks]))
        return nll, policy.estimate.loss(mean, scale, targets)

    def _origins(self, ticks: np.ndarray) -> np.ndarray:
        """Return what actions are told relative to, `(*ticks.shape, actions or 1)`."""
        relative = self.policy.settings.relative
        if not relative:
            return np.zeros((len(ticks), 1), np.float32)
        return self.data.vectors[ticks][:, relative]

    def _held_images(self, images: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Lose some images: the one before is then held, as on the robot."""
        first = images[:, :1]
        lost = self._rng.random(int(images.max()) + 1 - int(images.min())) \
            < self.settings.drop_image
        lost = lost[images - images.min()] & (images > first)
        return np.maximum.accumulate(np.where(lost, first, images), axis=1)

    def _missed_ticks(self, elapsed: np.ndarray, valid: np.ndarray):
        """Miss some ticks: the next one then comes after the sum of the elapsed times."""
        mask = valid.copy()
        # Half of the windows stay whole.
        hit = self._rng.random((len(mask), 1)) < 0.5
        mask &= ~(hit & (self._rng.random(mask.shape) < self.settings.drop_tick))
        total = np.cumsum(elapsed, axis=1)
        before = np.maximum.accumulate(np.where(mask, total, 0.0), axis=1)
        before = np.concatenate((np.zeros_like(before[:, :1]), before[:, :-1]), axis=1)
        return np.where(mask, total - before, elapsed).astype(np.float32), mask

    def _stored_features(self, images: np.ndarray) -> Tensor:
        if self.features is None:
            raise ValueError('features: expected those of all images, came none; call '
                             'encode_images first')
        return torch.from_numpy(self.features[images])

    def _encoded_features(self, images: np.ndarray):
        """Encode each image of the windows once; batch norm keeps the statistics it has."""
        policy, data = self.policy, self.data
        numbers, where = np.unique(images, return_inverse=True)
        policy.encoder.eval()
        color, depth = map(torch.from_numpy, data.read_images(numbers))
        color, depth = augment_images(color, depth, self._generator)
        features = policy.encoder(color, depth)
        rows = np.searchsorted(data.frame_images, numbers)
        rows = np.minimum(rows, len(data.frame_images) - 1)
        known = data.frame_images[rows] == numbers
        extra, parts = torch.zeros(()), {}
        # A head that has learned nothing yet would teach the encoder nonsense.
        if known.any() and bool(self.frame_head.fitted):
            extra, parts = self._frame_terms(features[torch.from_numpy(known)], rows[known])
        return features[torch.from_numpy(where.reshape(images.shape))], extra, parts
