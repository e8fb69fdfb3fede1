"""Settings of cores: older names, command lines, and what contradicts itself."""

import json

import pytest

from liquid_policy.core_settings import CoreSettings, core_settings
from liquid_policy.settings import PolicySettings, SettingsError


def test_older_name_means_mixed_memory():
    settings = CoreSettings(kind='cfc-mixed', units=32)
    assert settings == CoreSettings(kind='cfc', mixed_memory=True, units=32)
    assert settings.name == 'cfc-mixed'


def test_settings_of_older_checkpoints_are_read():
    old = {'core': {'kind': 'cfc-mixed', 'units': 64, 'unit_time': 0.02}}
    core = PolicySettings.from_dict(old).core
    assert core == CoreSettings(kind='cfc', mixed_memory=True, unit_time=0.02)
    again = PolicySettings.from_dict(json.loads(json.dumps(PolicySettings(core=core).to_dict())))
    assert again.core == core


def test_command_line_makes_settings():
    settings = core_settings('cfc', ['form=pure', 'units=19', 'wiring=ncp', 'sparsity=0.3'],
                             unit_time=0.02)
    assert settings == CoreSettings(kind='cfc', form='pure', units=19, wiring='ncp',
                                    sparsity=0.3, unit_time=0.02)
    assert core_settings('cfc-mixed', ['mixed_memory=true']).mixed_memory


@pytest.mark.parametrize('settings, name', [
    (CoreSettings(), 'cfc'),
    (CoreSettings(kind='ltc', wiring='ncp', units=19), 'ltc-ncp'),
    (CoreSettings(form='pure', mixed_memory=True), 'cfc-pure-mixed'),
    (CoreSettings(kind='ode', solver='euler'), 'ode-euler'),
])
def test_name_says_what_is_special(settings, name):
    assert settings.name == name


def test_heads_see_the_motor_neurons():
    assert CoreSettings(units=32).output_count == 32
    assert CoreSettings(wiring='ncp', units=19).output_count == 6
    assert CoreSettings(wiring='ncp', units=19, outputs=3).output_count == 3


@pytest.mark.parametrize('values, text', [
    ({'kind': 'rnn'}, "core.kind: expected one of cfc, ltc, ode, scan, .*cfc-mixed, came 'rnn'"),
    ({'form': 'open'}, "core.form: expected one of gated, no_gate, pure, came 'open'"),
    ({'wiring': 'random'}, 'core.wiring: expected one of dense, ncp'),
    ({'kind': 'ode', 'solver': 'rk45'}, 'core.solver: expected one of euler, rk4, dopri5'),
    ({'units': 0}, 'core.units: expected a whole number from 1 to 4096, came 0'),
    ({'units': 6.5}, 'core.units'),
    ({'mixed_memory': 1}, 'core.mixed_memory: expected true or false, came 1'),
    ({'unit_time': 0.0}, 'core.unit_time: expected above 0 s'),
    ({'wiring': 'ncp', 'sparsity': 1.0}, 'core.sparsity'),
    ({'kind': 'lstm', 'form': 'pure'}, "core.form: expected its default 'gated' with kind lstm, "
     'for it is an option of cfc'),
    ({'kind': 'ltc', 'mixed_memory': True}, 'core.mixed_memory: expected its default False'),
    ({'kind': 'gru', 'wiring': 'ncp'}, 'an option of cfc and ltc and ode'),
    ({'outputs': 3}, 'only wiring ncp has motor neurons'),
    ({'wiring': 'ncp', 'backbone': 64}, 'wiring ncp has no backbone'),
    ({'wiring': 'ncp', 'units': 4}, 'at least 5 for wiring ncp'),
    ({'wiring': 'ncp', 'units': 19, 'outputs': 17}, 'fewer than 17 motor neurons of 19'),
    ({'kind': 'ode', 'adjoint': True}, 'only solver dopri5 has an adjoint'),
    ({'kind': 'ode', 'tolerance': 1e-3}, 'only solver dopri5 has a tolerance'),
    ({'kind': 'cfc', 'layers': 3}, 'an option of scan'),
])
def test_bad_settings_are_refused(values, text):
    with pytest.raises(SettingsError, match=text):
        CoreSettings(**values)


@pytest.mark.parametrize('options, text', [
    (['speed=3'], "unknown option 'speed'; known are units"),
    (['units'], "expected name=value, for example units=32, came 'units'"),
    (['units=many'], "core.units: expected a number such as 64, came 'many'"),
    (['mixed_memory=yes'], "core.mixed_memory: expected true or false, came 'yes'"),
])
def test_bad_command_lines_are_refused(options, text):
    with pytest.raises(SettingsError, match=text):
        core_settings('cfc', options)
