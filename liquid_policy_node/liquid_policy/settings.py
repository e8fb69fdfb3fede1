"""What a policy is made of: frozen settings, validated when built, stored in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from liquid_policy.core_settings import CORES, CoreSettings
from liquid_policy.head_settings import (
    HEADS,
    DeterministicSettings,
    DiffusionSettings,
    FlowSettings,
    HeadSettings,
    ImleSettings,
    MixtureSettings,
    SettingsError,
    head_settings,
)
from liquid_policy.head_settings import build as _build
from liquid_policy.head_settings import require as _require

__all__ = [
    'CORES', 'HEADS', 'CoreSettings', 'DeterministicSettings', 'DiffusionSettings',
    'EncoderSettings', 'FlowSettings', 'HeadSettings', 'ImleSettings', 'MixtureSettings',
    'PolicySettings', 'SettingsError',
]


@dataclass(frozen=True)
class EncoderSettings:
    """Image encoder: MobileNetV2 with key points."""

    width: float = field(default=0.5, metadata={'description': 'channel multiplier'})
    size: int = field(default=128, metadata={'description': 'features'})
    points: int = field(default=28, metadata={'description': 'key points, three features each'})
    merged: int = field(default=32, metadata={'description': 'channels of the merged map'})
    height: int = field(default=96, metadata={'description': 'image rows', 'unit': 'px'})
    width_pixels: int = field(default=96, metadata={'description': 'image columns',
                                                    'unit': 'px'})
    depth_limit: float = field(default=3.0, metadata={'description': 'largest depth told apart',
                                                      'unit': 'm'})
    near: int = field(default=0, metadata={
        'description': 'how many of the features magnify what others tell, near a place'})

    def __post_init__(self):
        _require(0.1 <= self.width <= 2.0, 'encoder.width', self.width, '0.1 to 2.0')
        _require(self.near >= 0, 'encoder.near', self.near, 'a whole number of at least 0')
        others = self.size - self.near
        _require(self.points > 0 and 3 * self.points < others, 'encoder.points', self.points,
                 f'1 to {(others - 1) // 3} for {others} features')
        _require(self.merged > 0, 'encoder.merged', self.merged, 'a positive number')
        for name in ('height', 'width_pixels'):
            value = getattr(self, name)
            _require(value > 0 and value % 32 == 0, f'encoder.{name}', value,
                     'a positive multiple of 32')
        _require(self.depth_limit > 0.0, 'encoder.depth_limit', self.depth_limit, 'above 0 m')


@dataclass(frozen=True)
class PolicySettings:
    """Everything needed to build a policy; sizes come from the interface."""

    vector_size: int = field(default=12, metadata={'description': 'IMU and joint numbers'})
    action_size: int = field(default=9, metadata={'description': 'action numbers'})
    target_size: int = field(default=4, metadata={'description': 'numbers to estimate'})
    encoder: EncoderSettings | None = field(default_factory=EncoderSettings, metadata={
        'description': 'image encoder; None: a policy without images'})
    core: CoreSettings = field(default_factory=CoreSettings)
    head: HeadSettings = field(default_factory=MixtureSettings)
    relative: tuple[int, ...] = field(default=(), metadata={
        'description': 'numbers of the vector that the actions are told relative to, one for '
                       'each action; empty: actions are told as they are'})

    def __post_init__(self):
        for name, least in (('vector_size', 1), ('action_size', 1), ('target_size', 0)):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= least, name, value,
                     f'a whole number of at least {least}')
        object.__setattr__(self, 'relative', tuple(self.relative))      # JSON has only lists
        _require(not self.relative or (len(self.relative) == self.action_size and all(
            isinstance(i, int) and 0 <= i < self.vector_size for i in self.relative)),
            'relative', self.relative, f'none, or {self.action_size} numbers from 0 to '
            f'{self.vector_size - 1}')

    @property
    def feature_size(self) -> int:
        """Numbers the image encoder gives; 0 without one."""
        return self.encoder.size if self.encoder else 0

    @property
    def input_size(self) -> int:
        """Numbers the core is fed: features and vector."""
        return self.feature_size + self.vector_size

    @property
    def name(self) -> str:
        """What tables call a policy of these settings, such as `cfc+mixture`."""
        return f'{self.core.name}+{self.head.name}'

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain numbers and texts, for JSON."""
        return {**asdict(self), 'head': self.head.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicySettings:
        """
        Build settings from `to_dict`'s result, or from that of a version without other heads.

        :raises SettingsError: if a name is unknown or a value out of range.
        """
        parts = dict(values)
        if 'mixture' in parts and 'head' not in parts:
            head = parts.pop('mixture')
            parts['head'] = {'kind': 'mixture', **head} if isinstance(head, Mapping) else head
        if 'head' in parts:
            parts['head'] = head_settings(parts['head'])
        if parts.get('encoder') is not None:
            parts['encoder'] = _build(EncoderSettings, parts['encoder'], 'encoder')
        if 'core' in parts:
            parts['core'] = _build(CoreSettings, parts['core'], 'core')
        return _build(cls, parts, 'policy')
