"""What a policy is made of: frozen settings, validated when built, stored in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

CORES = ('cfc', 'cfc-mixed', 'lstm', 'ode')


class SettingsError(ValueError):
    """A setting is missing, unknown or out of range."""


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise SettingsError(f'{name}: expected {expected}, came {value!r}')


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

    def __post_init__(self):
        _require(0.1 <= self.width <= 2.0, 'encoder.width', self.width, '0.1 to 2.0')
        _require(self.points > 0 and 3 * self.points < self.size, 'encoder.points', self.points,
                 f'1 to {(self.size - 1) // 3} for {self.size} features')
        _require(self.merged > 0, 'encoder.merged', self.merged, 'a positive number')
        for name in ('height', 'width_pixels'):
            value = getattr(self, name)
            _require(value > 0 and value % 32 == 0, f'encoder.{name}', value,
                     'a positive multiple of 32')
        _require(self.depth_limit > 0.0, 'encoder.depth_limit', self.depth_limit, 'above 0 m')


@dataclass(frozen=True)
class CoreSettings:
    """Recurrent core."""

    kind: str = field(default='cfc', metadata={'description': ' | '.join(CORES)})
    units: int = field(default=64, metadata={'description': 'hidden units'})
    unit_time: float = field(default=0.01, metadata={
        'description': 'elapsed times are fed in multiples of this', 'unit': 's'})

    def __post_init__(self):
        _require(self.unit_time > 0.0, 'core.unit_time', self.unit_time, 'above 0 s')
        _require(self.kind in CORES, 'core.kind', self.kind, f'one of {", ".join(CORES)}')
        _require(1 <= self.units <= 4096, 'core.units', self.units, '1 to 4096')


@dataclass(frozen=True)
class MixtureSettings:
    """Mixture head: components over the whole horizon."""

    components: int = field(default=5, metadata={'description': 'Gaussians'})
    horizon: int = field(default=16, metadata={'description': 'steps of an action chunk'})
    dt: float = field(default=0.02, metadata={'description': 'time between steps of a chunk',
                                              'unit': 's'})
    hidden: int = field(default=96, metadata={'description': 'hidden units of the head'})
    least_scale: float = field(
        default=0.05, metadata={'description': 'smallest standard deviation, normalised'})

    def __post_init__(self):
        _require(1 <= self.components <= 64, 'mixture.components', self.components, '1 to 64')
        _require(1 <= self.horizon <= 512, 'mixture.horizon', self.horizon, '1 to 512')
        _require(self.dt > 0.0, 'mixture.dt', self.dt, 'above 0 s')
        _require(self.hidden > 0, 'mixture.hidden', self.hidden, 'a positive number')
        _require(0.0 < self.least_scale < 1.0, 'mixture.least_scale', self.least_scale,
                 'between 0 and 1')


@dataclass(frozen=True)
class PolicySettings:
    """Everything needed to build a policy; sizes come from the interface."""

    vector_size: int = field(default=12, metadata={'description': 'IMU and joint numbers'})
    action_size: int = field(default=9, metadata={'description': 'action numbers'})
    target_size: int = field(default=4, metadata={'description': 'numbers to estimate'})
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    core: CoreSettings = field(default_factory=CoreSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)

    def __post_init__(self):
        for name, least in (('vector_size', 1), ('action_size', 1), ('target_size', 0)):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= least, name, value,
                     f'a whole number of at least {least}')

    @property
    def input_size(self) -> int:
        """Numbers the core is fed: features and vector."""
        return self.encoder.size + self.vector_size

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain numbers and texts, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicySettings:
        """
        Build settings from `to_dict`'s result.

        :raises SettingsError: if a name is unknown or a value out of range.
        """
        parts = {'encoder': EncoderSettings, 'core': CoreSettings, 'mixture': MixtureSettings}
        return _build(cls, {name: _build(parts[name], value, name) if name in parts else value
                            for name, value in values.items()}, 'policy')


def _build(kind: type, values: Any, name: str):
    if not isinstance(values, Mapping):
        raise SettingsError(f'{name}: expected a mapping, came {values!r}')
    unknown = sorted(set(values) - {item.name for item in fields(kind)})
    if unknown:
        known = ', '.join(item.name for item in fields(kind))
        raise SettingsError(f'{name}: unknown setting {unknown[0]!r}; known are {known}')
    return kind(**values)
