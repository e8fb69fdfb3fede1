"""What a core is made of: one frozen dataclass, validated when built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from liquid_policy.head_settings import SettingsError, require

CORES = ('cfc', 'ltc', 'ode', 'scan', 'lstm', 'gru')
FORMS = ('gated', 'no_gate', 'pure')
WIRINGS = ('dense', 'ncp')
SOLVERS = ('euler', 'rk4', 'dopri5')
# Names that older checkpoints and commands use, and what they mean.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {'cfc-mixed': ('cfc', {'mixed_memory': True})}
# Kinds that a circuit can wire.
_WIRED = ('cfc', 'ltc', 'ode')
# Substeps of a kind that integrates, where the settings name none.
SUBSTEPS = {'ode': 2, 'ltc': 6}


def _option(default: Any, kinds: tuple[str, ...], description: str, **more: Any) -> Any:
    return field(default=default, metadata={'description': description, 'kinds': kinds, **more})


@dataclass(frozen=True)
class CoreSettings:
    """
    Recurrent core.

    An option that the kind does not know must keep its default: a setting that is silently
    ignored would be mistaken for one that was tried.
    """

    kind: str = field(default='cfc', metadata={'description': ' | '.join(CORES)})
    units: int = field(default=64, metadata={'description': 'hidden units, neurons'})
    unit_time: float = field(default=0.01, metadata={
        'description': 'elapsed times are fed in multiples of this', 'unit': 's'})
    form: str = _option('gated', ('cfc',), ' | '.join(FORMS))
    mixed_memory: bool = _option(False, ('cfc',), 'a gated memory cell beside the liquid one')
    backbone: int = _option(128, ('cfc',), 'hidden units between state and gates; dense only')
    wiring: str = _option('dense', _WIRED, ' | '.join(WIRINGS))
    outputs: int = _option(0, _WIRED, 'motor neurons, which the heads see; 0: three '
                           'tenths of the units; ncp only')
    sparsity: float = _option(0.5, _WIRED, 'share of synapses left out; ncp only')
    wiring_seed: int = _option(0, _WIRED, 'of the synapses drawn')
    solver: str = _option('rk4', ('ode',), ' | '.join(SOLVERS))
    substeps: int = _option(0, ('ode', 'ltc'), "solver steps per step; 0: the kind's own, "
                            + ', '.join(f'{kind} {count}' for kind, count in SUBSTEPS.items()))
    adjoint: bool = _option(False, ('ode',), 'gradients by the adjoint equation; dopri5 only')
    tolerance: float = _option(1e-5, ('ode',), 'relative and absolute, of dopri5')
    layers: int = _option(2, ('scan',), 'linear recurrences, one after the other')

    def __post_init__(self):
        if self.kind in ALIASES:
            kind, options = ALIASES[self.kind]
            for name, value in {'kind': kind, **options}.items():
                object.__setattr__(self, name, value)
        require(self.kind in CORES, 'core.kind', self.kind,
                f'one of {", ".join((*CORES, *ALIASES))}')
        for name, choices in (('form', FORMS), ('wiring', WIRINGS), ('solver', SOLVERS)):
            require(getattr(self, name) in choices, f'core.{name}', getattr(self, name),
                    f'one of {", ".join(choices)}')
        for name, least, most in (('units', 1, 4096), ('backbone', 1, 4096), ('outputs', 0, 4096),
                                  ('substeps', 0, 1000), ('layers', 1, 16),
                                  ('wiring_seed', 0, 2 ** 32 - 1)):
            value = getattr(self, name)
            require(type(value) is int and least <= value <= most, f'core.{name}', value,
                    f'a whole number from {least} to {most}')
        for name in ('mixed_memory', 'adjoint'):
            require(isinstance(getattr(self, name), bool), f'core.{name}', getattr(self, name),
                    'true or false')
        require(self.unit_time > 0.0, 'core.unit_time', self.unit_time, 'above 0 s')
        require(0.0 <= self.sparsity <= 0.95, 'core.sparsity', self.sparsity, '0.0 to 0.95')
        require(0.0 < self.tolerance < 1.0, 'core.tolerance', self.tolerance, 'between 0 and 1')
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        for item in fields(self):
            kinds = item.metadata.get('kinds', (self.kind,))
            require(self.kind in kinds or getattr(self, item.name) == item.default,
                    f'core.{item.name}', getattr(self, item.name),
                    f'its default {item.default!r} with kind {self.kind}, for it is an option of '
                    f'{" and ".join(kinds)}')
        wired = self.wiring == 'ncp'
        for name, used, reason in (
                ('outputs', wired, 'only wiring ncp has motor neurons'),
                ('sparsity', wired, 'only wiring ncp is sparse'),
                ('backbone', not wired, 'wiring ncp has no backbone'),
                ('adjoint', self.solver == 'dopri5', 'only solver dopri5 has an adjoint'),
                ('tolerance', self.solver == 'dopri5', 'only solver dopri5 has a tolerance')):
            default = type(self).__dataclass_fields__[name].default
            require(used or getattr(self, name) == default, f'core.{name}', getattr(self, name),
                    f'its default {default!r}, for {reason}')
        require(not wired or self.units >= 5, 'core.units', self.units,
                'at least 5 for wiring ncp')
        require(not wired or self.output_count < self.units - 2, 'core.outputs', self.outputs,
                f'fewer than {self.units - 2} motor neurons of {self.units}')

    @property
    def output_count(self) -> int:
        """Numbers that the heads see."""
        if self.wiring == 'dense':
            return self.units
        return self.outputs or max(1, round(0.3 * self.units))

    @property
    def substep_count(self) -> int:
        """Solver steps per step."""
        return self.substeps or SUBSTEPS.get(self.kind, 1)

    @property
    def name(self) -> str:
        """What tables call this core: `cfc`, `cfc-mixed`, `cfc-pure-ncp`, `ode-euler`."""
        parts = [self.kind]
        if self.form != 'gated':
            parts.append(self.form)
        if self.mixed_memory:
            parts.append('mixed')
        if self.wiring != 'dense':
            parts.append(self.wiring)
        if self.solver != 'rk4':
            parts.append(self.solver)
        return '-'.join(parts)


def core_settings(kind: str, options: Mapping[str, Any] | Sequence[str] = (),
                  **defaults: Any) -> CoreSettings:
    """
    Return settings from a command line.

    :param kind: a core, or an older name of one.
    :param options: texts such as `form=pure`, or names and values.
    :param defaults: values of names that the options leave out.
    :raises SettingsError: if an option is unknown, unreadable or out of range.
    """
    known = {item.name: item for item in fields(CoreSettings) if item.name != 'kind'}
    if not isinstance(options, Mapping):
        pairs = [text.partition('=') for text in options]
        for name, mark, value in pairs:
            require(bool(name and mark and value), 'core option', name + mark + value,
                    'name=value, for example units=32')
        options = {name: value for name, _, value in pairs}
    values = dict(defaults)
    for name, value in options.items():
        if name not in known:
            raise SettingsError(f'core: unknown option {name!r}; known are {", ".join(known)}')
        values[name] = _read(value, known[name].default, name)
    return CoreSettings(kind=kind, **values)


def _read(value: Any, default: Any, name: str) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if isinstance(default, bool):
        require(value in ('true', 'false'), f'core.{name}', value, 'true or false')
        return value == 'true'
    try:
        return type(default)(value)
    except ValueError:
        raise SettingsError(f'core.{name}: expected a number such as {default}, came '
                            f'{value!r}') from None
