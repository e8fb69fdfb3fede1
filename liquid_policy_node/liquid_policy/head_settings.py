"""What a head is made of: one frozen dataclass per kind, validated when built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

NETWORKS = ('mlp', 'unet')
SCHEDULES = ('ddpm', 'ddim')


class SettingsError(ValueError):
    """A setting is missing, unknown or out of range."""


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """
    Refuse a setting.

    :param condition: true when the value is good.
    :raises SettingsError: otherwise, naming what was expected and what came.
    """
    if not condition:
        raise SettingsError(f'{name}: expected {expected}, came {value!r}')


def build(kind: type, values: Any, name: str) -> Any:
    """
    Return a settings dataclass from plain values.

    :raises SettingsError: if it is no mapping, or a name is unknown.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f'{name}: expected a mapping, came {values!r}')
    unknown = sorted(set(values) - {item.name for item in fields(kind)})
    if unknown:
        known = ', '.join(item.name for item in fields(kind))
        raise SettingsError(f'{name}: unknown setting {unknown[0]!r}; known are {known}')
    return kind(**values)


@dataclass(frozen=True)
class HeadSettings:
    """What all heads share: the action chunk and the trunk before it."""

    kind: ClassVar[str] = ''

    horizon: int = field(default=16, metadata={'description': 'steps of an action chunk'})
    dt: float = field(default=0.02, metadata={'description': 'time between steps of a chunk',
                                              'unit': 's'})
    hidden: int = field(default=96, metadata={'description': 'hidden units of the trunk'})
    layers: int = field(default=1, metadata={
        'description': 'layers of the trunk; those after the first are residual'})
    dropout: float = field(default=0.0, metadata={
        'description': 'share of hidden units left out in training'})
    least_scale: float = field(default=0.05, metadata={
        'description': 'smallest standard deviation, normalised; of a sample, its only one'})

    def __post_init__(self):
        name = self.kind
        require(1 <= self.horizon <= 512, f'{name}.horizon', self.horizon, '1 to 512')
        require(self.dt > 0.0, f'{name}.dt', self.dt, 'above 0 s')
        require(self.hidden > 0, f'{name}.hidden', self.hidden, 'a positive number')
        require(1 <= self.layers <= 32, f'{name}.layers', self.layers, '1 to 32')
        require(0.0 <= self.dropout < 1.0, f'{name}.dropout', self.dropout, '0 to below 1')
        require(0.0 < self.least_scale < 1.0, f'{name}.least_scale', self.least_scale,
                'between 0 and 1')

    @property
    def name(self) -> str:
        """What tables call a head of these settings."""
        return self.kind

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain numbers and texts, the kind among them."""
        return {'kind': self.kind, **asdict(self)}


@dataclass(frozen=True)
class MixtureSettings(HeadSettings):
    """Mixture head: Gaussian components over the whole horizon."""

    kind: ClassVar[str] = 'mixture'

    components: int = field(default=5, metadata={'description': 'Gaussians'})
    rank: int = field(default=0, metadata={
        'description': "directions in which a plan's numbers vary together; 0: diagonal"})

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.components <= 64, 'mixture.components', self.components, '1 to 64')
        require(0 <= self.rank <= 32, 'mixture.rank', self.rank, '0 to 32')


@dataclass(frozen=True)
class DeterministicSettings(HeadSettings):
    """Deterministic head: one chunk, by least squares."""

    kind: ClassVar[str] = 'deterministic'


@dataclass(frozen=True)
class SamplerSettings(HeadSettings):
    """What heads that answer with samples share: how many, and the network that makes them."""

    samples: int = field(default=1, metadata={
        'description': 'samples of one answer; the one nearest to the last plan is followed'})
    network: str = field(default='mlp', metadata={'description': ' | '.join(NETWORKS)})
    width: int = field(default=256, metadata={'description': 'hidden units of the mlp'})
    depth: int = field(default=3, metadata={'description': 'residual blocks of the mlp'})
    channels: tuple[int, ...] = field(default=(64, 128, 256), metadata={
        'description': 'of the U-Net, level by level; each level halves the horizon'})

    def __post_init__(self):
        super().__post_init__()
        name = self.kind
        object.__setattr__(self, 'channels', tuple(self.channels))    # JSON has only lists
        require(1 <= self.samples <= 256, f'{name}.samples', self.samples, '1 to 256')
        require(self.network in NETWORKS, f'{name}.network', self.network,
                f'one of {", ".join(NETWORKS)}')
        require(self.width > 0, f'{name}.width', self.width, 'a positive number')
        require(1 <= self.depth <= 32, f'{name}.depth', self.depth, '1 to 32')
        require(bool(self.channels) and all(
            isinstance(c, int) and c > 0 and c % 8 == 0 for c in self.channels),
            f'{name}.channels', self.channels, 'multiples of 8')
        if self.network == 'unet':
            halvings = 2 ** (len(self.channels) - 1)
            require(self.horizon % halvings == 0, f'{name}.horizon', self.horizon,
                    f'a multiple of {halvings}, which {len(self.channels)} levels halve')


@dataclass(frozen=True)
class ImleSettings(SamplerSettings):
    """Implicit maximum likelihood head: noise to chunk in one step."""

    kind: ClassVar[str] = 'imle'

    samples: int = field(default=8, metadata={
        'description': 'samples of one answer; the one nearest to the last plan is followed'})
    candidates: int = field(default=20, metadata={
        'description': 'samples per demonstration in training; the nearest is pulled to it'})
    epsilon: float = field(default=0.03, metadata={
        'description': 'candidates nearer than this are left out; root mean square, normalised'})

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.candidates <= 256, 'imle.candidates', self.candidates, '1 to 256')
        require(self.epsilon >= 0.0, 'imle.epsilon', self.epsilon, '0 or more')


@dataclass(frozen=True)
class FlowSettings(SamplerSettings):
    """Flow-matching head: noise carried to a chunk along a learned velocity."""

    kind: ClassVar[str] = 'flow'

    steps: int = field(default=1, metadata={'description': 'Euler steps from noise to chunk'})

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.steps <= 1000, 'flow.steps', self.steps, '1 to 1000')

    @property
    def name(self) -> str:
        """What tables call it, such as `flow-1`."""
        return f'flow-{self.steps}'


@dataclass(frozen=True)
class DiffusionSettings(SamplerSettings):
    """Diffusion head: noise removed step by step."""

    kind: ClassVar[str] = 'diffusion'

    network: str = field(default='unet', metadata={'description': ' | '.join(NETWORKS)})
    schedule: str = field(default='ddpm', metadata={'description': ' | '.join(SCHEDULES)})
    steps: int = field(default=100, metadata={'description': 'steps from noise to chunk'})
    noise_levels: int = field(default=100, metadata={'description': 'levels learned'})
    clip: float = field(default=4.0, metadata={
        'description': 'largest normalised action a step may believe in'})

    def __post_init__(self):
        super().__post_init__()
        require(self.schedule in SCHEDULES, 'diffusion.schedule', self.schedule,
                f'one of {", ".join(SCHEDULES)}')
        require(2 <= self.noise_levels <= 1000, 'diffusion.noise_levels', self.noise_levels,
                '2 to 1000')
        require(1 <= self.steps <= self.noise_levels, 'diffusion.steps', self.steps,
                f'1 to {self.noise_levels}, the levels learned')
        require(self.clip > 0.0, 'diffusion.clip', self.clip, 'above 0')

    @property
    def name(self) -> str:
        """What tables call it, such as `diffusion-ddpm50`."""
        return f'diffusion-{self.schedule}{self.steps}'


HEADS: dict[str, type[HeadSettings]] = {kind.kind: kind for kind in (
    MixtureSettings, DeterministicSettings, ImleSettings, FlowSettings, DiffusionSettings)}


def head_settings(values: Any) -> HeadSettings:
    """
    Return a head's settings from `HeadSettings.to_dict`'s result.

    :raises SettingsError: if the kind or a name is unknown, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f'head: expected a mapping, came {values!r}')
    kind = values.get('kind')
    require(kind in HEADS, 'head.kind', kind, f'one of {", ".join(HEADS)}')
    rest = {name: value for name, value in values.items() if name != 'kind'}
    return build(HEADS[str(kind)], rest, str(kind))


def option_values(options: Sequence[str], where: str) -> dict[str, Any]:
    """
    Return settings given as texts such as `components=16`, by name.

    A value is read as JSON (numbers, lists, true and false), and as a text where it is none.

    :param where: what an error says the options are of.
    :raises SettingsError: if one has no name or no value.
    """
    found = {}
    for option in options:
        name, mark, value = option.partition('=')
        require(bool(name and mark and value), where, option, 'NAME=VALUE')
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def head_values(policy: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Return the head's part of a policy's plain settings.

    Checkpoints from before there was a choice of heads have a `mixture` and no `head`.
    """
    if 'head' in policy:
        return policy['head']
    return {'kind': 'mixture', **policy['mixture']}
