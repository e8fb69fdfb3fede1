"""How a policy is learned: frozen settings, validated when built, kept in the model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

STAGES = ('frames', 'core', 'joint')
SAFE = ('none', 'barrier')


@dataclass(frozen=True)
class LearningSettings:
    """
    Three stages, each with its share of the time.

    `frames`: the encoder learns from single shuffled images, which teach more per second than
    windows do. `core`: core and heads learn from windows over the encoder's stored features.
    `joint`: everything learns from windows, end to end.
    """

    minutes: tuple[float, float, float] = field(
        default=(20.0, 8.0, 22.0), metadata={'description': 'time of each stage', 'unit': 'min'})
    steps: tuple[int, int, int] | None = field(
        default=None, metadata={'description': 'steps of each stage, instead of minutes'})
    seed: int = field(default=0, metadata={'description': 'of everything random'})
    threads: int = field(default=2, metadata={'description': 'processor threads'})
    held_out: float = field(default=0.1, metadata={'description': 'share of episodes'})
    frame_batch: int = field(default=64, metadata={'description': 'images per step'})
    core_batch: int = field(default=48, metadata={'description': 'streams in core'})
    joint_batch: int = field(default=8, metadata={'description': 'streams in joint'})
    core_window: float = field(default=1.5, metadata={'description': 'of a stream', 'unit': 's'})
    joint_window: float = field(default=0.8, metadata={'description': 'of a stream',
                                                       'unit': 's'})
    shards: int = field(default=1, metadata={
        'description': 'parts of every batch, which processes share out among them'})
    loss_stride: int = field(default=4, metadata={'description': 'ticks from loss to loss'})
    frame_rate: float = field(default=3e-3, metadata={'description': 'learning rate, encoder'})
    core_rate: float = field(default=2e-3, metadata={'description': 'learning rate, core, heads'})
    joint_rate: float = field(default=3e-4, metadata={'description': 'learning rate, all'})
    weight_decay: float = field(default=0.02, metadata={'description': 'AdamW'})
    clip: float = field(default=1.0, metadata={'description': 'largest norm of the gradient'})
    warm_up: float = field(default=0.05, metadata={'description': 'share of a stage'})
    average: float = field(default=0.998, metadata={'description': 'decay of the mean weights'})
    estimate_weight: float = field(default=0.2, metadata={'description': 'of the estimate loss'})
    balance_weight: float = field(default=0.01, metadata={'description': 'of the usage loss'})
    frame_weight: float = field(
        default=0.2, metadata={'description': 'of the single-image loss in joint'})
    feature_noise: float = field(default=0.05, metadata={'description': 'normalised'})
    vector_noise: float = field(default=0.02, metadata={'description': 'normalised'})
    drop_tick: float = field(default=0.05, metadata={'description': 'share of missed ticks'})
    drop_image: float = field(default=0.1, metadata={'description': 'share of missed images'})
    safe: str = field(default='none', metadata={
        'description': "barrier: actions pass the safety filter's constraints before the loss"})
    validations: int = field(default=8, metadata={
        'description': 'free-running scores on held-out episodes within a stage given in steps'})
    patience: int = field(default=0, metadata={
        'description': 'end a stage after so many scores in a row without a better one; 0: never'})
    save_every: float = field(default=5.0, metadata={'description': 'between resumable states',
                                                     'unit': 'min'})

    def __post_init__(self):
        for name in ('minutes', 'steps'):
            value = getattr(self, name)
            if value is None and name == 'steps':
                continue
            if len(value) != len(STAGES) or min(value) < 0 or sum(value) <= 0:
                raise ValueError(f'{name}: expected {len(STAGES)} numbers of at least 0 for '
                                 f'{", ".join(STAGES)}, one of them above, came {value!r}')
        if self.safe not in SAFE:
            raise ValueError(f'safe: expected one of {", ".join(SAFE)}, came {self.safe!r}')
        if self.patience < 0:
            raise ValueError(f'patience: expected at least 0, came {self.patience}')
        for name in ('threads', 'frame_batch', 'core_batch', 'joint_batch', 'loss_stride',
                     'shards', 'validations'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}: expected at least 1, came {getattr(self, name)}')
        for name in ('frame_batch', 'core_batch', 'joint_batch'):
            if getattr(self, name) % self.shards:
                raise ValueError(f'{name}: expected a multiple of the {self.shards} shards, came '
                                 f'{getattr(self, name)}')
        for name in ('held_out', 'warm_up', 'average', 'drop_tick', 'drop_image'):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f'{name}: expected 0 to below 1, came {getattr(self, name)}')
        for name in ('core_window', 'joint_window', 'frame_rate', 'core_rate', 'joint_rate',
                     'clip', 'save_every'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: expected above 0, came {getattr(self, name)}')

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain numbers and texts, for JSON."""
        return asdict(self)
