"""How the online learner learns: frozen settings, validated when built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PRECISIONS = ('auto', 'float32', 'bfloat16')


@dataclass(frozen=True)
class LearnerSettings:
    """One optimisation step after the other."""

    rate: float = field(default=1e-4, metadata={'description': 'learning rate of AdamW'})
    weight_decay: float = field(default=1e-4, metadata={'description': 'of AdamW, matrices only'})
    clip: float = field(default=1.0, metadata={'description': 'largest norm of the gradient'})
    warm_up: int = field(default=10, metadata={'description': 'steps until the full rate'})
    average: float = field(default=0.9, metadata={
        'description': "share of the candidate's averaged weights kept per step"})
    micro_batches: int = field(default=1, metadata={
        'description': 'passes whose gradients are accumulated for one step; more passes of '
                       'fewer windows need less memory and pause more often, but more time'})
    windows: int = field(default=8, metadata={'description': 'windows of one pass'})
    stride: int = field(default=4, metadata={'description': 'ticks from loss to loss'})
    burn_in: float = field(default=0.25, metadata={
        'description': 'share of a window without loss: the state finds itself'})
    recent: float = field(default=60.0, metadata={
        'description': 'how long live windows count as recent', 'unit': 's'})
    replay: float = field(default=0.5, metadata={
        'description': 'share of the windows drawn from the reservoir; 0 switches replay off'})
    reservoir: int = field(default=512, metadata={'description': 'windows kept on disk'})
    consolidation: float = field(default=2.0, metadata={
        'description': 'strength of elastic weight consolidation; 0 switches it off'})
    fisher_windows: int = field(default=16, metadata={
        'description': 'windows that the Fisher information is measured on'})
    correction: float = field(default=4.0, metadata={
        'description': 'weight of a tick at which somebody showed the running policy another '
                       'action, against 1'})
    tolerance: float = field(default=0.5, metadata={
        'description': 'smallest difference that is a correction, in scales of the actions'})
    trim: float = field(default=0.1, metadata={
        'description': 'share of the ticks with the largest losses that is left out: wrong '
                       'demonstrations; for mixture heads'})
    target_weight: float = field(default=1.0, metadata={'description': "of the targets' loss"})
    refinement: int = field(default=200, metadata={
        'description': "steps in which the estimate's head is fitted anew for a candidate; 0: it "
                       'learns with the core only'})
    refinement_rate: float = field(default=2e-3, metadata={
        'description': 'their learning rate at first'})
    hold: float = field(default=3.0, metadata={
        'description': 'how strongly they are held to what the head said before on windows of '
                       'old conditions; 0: not at all'})
    hindsight: bool = field(default=True, metadata={
        'description': 'label the targets of earlier ticks by what is seen later'})
    low_pass: float = field(default=0.0, metadata={
        'description': "cutoff of a low-pass filter on the candidate's vector inputs; 0: as the "
                       'checkpoint was trained', 'unit': 'Hz'})
    precision: str = field(default='auto', metadata={
        'description': 'auto: bfloat16 on a GPU that supports it, else float32'})
    device: str = field(default='cpu', metadata={'description': 'cpu | cuda'})
    seed: int = field(default=0, metadata={'description': 'of everything random'})

    def __post_init__(self):
        for name in ('rate', 'clip', 'refinement_rate'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: expected above 0, came {getattr(self, name)}')
        for name in ('micro_batches', 'windows', 'stride', 'reservoir'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}: expected 1 or more, came {getattr(self, name)}')
        for name in ('average', 'burn_in', 'trim'):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f'{name}: expected 0 to below 1, came {getattr(self, name)}')
        for name in ('weight_decay', 'warm_up', 'recent', 'consolidation', 'fisher_windows',
                     'tolerance', 'target_weight', 'refinement', 'hold', 'low_pass'):
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name}: expected 0 or more, came {getattr(self, name)}')
        if not 0.0 <= self.replay <= 1.0:
            raise ValueError(f'replay: expected 0 to 1, came {self.replay}')
        if not self.correction >= 1.0:
            raise ValueError(f'correction: expected 1 or more, came {self.correction}')
        if self.precision not in PRECISIONS:
            raise ValueError(f'precision: expected one of {", ".join(PRECISIONS)}, came '
                             f'{self.precision!r}')

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain numbers and texts, for JSON."""
        return asdict(self)
