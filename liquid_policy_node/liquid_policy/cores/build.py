"""A core from its settings."""

from __future__ import annotations

from liquid_policy.core_settings import CoreSettings
from liquid_policy.cores.cfc import CfcCore, MixedCfcCore, MixedWiredCfcCore, WiredCfcCore
from liquid_policy.cores.ltc import LtcCore
from liquid_policy.cores.ode import OdeCore
from liquid_policy.cores.protocol import Core
from liquid_policy.cores.recurrent import GruCore, LstmCore
from liquid_policy.cores.scan import ScanCore
from liquid_policy.cores.wirings import Wiring, circuit_wiring, dense_wiring


def build_wiring(settings: CoreSettings, inputs: int) -> Wiring:
    """Return the wiring that the settings name."""
    if settings.wiring == 'dense':
        return dense_wiring(inputs, settings.units, settings.wiring_seed)
    return circuit_wiring(inputs, settings.units, settings.output_count, settings.sparsity,
                          settings.wiring_seed)


def build_core(settings: CoreSettings, inputs: int) -> Core:
    """Return the core that the settings name, for `inputs` numbers per step."""
    units, unit_time, form = settings.units, settings.unit_time, settings.form
    if settings.kind == 'cfc' and settings.wiring == 'dense':
        dense = MixedCfcCore if settings.mixed_memory else CfcCore
        return dense(inputs, units, unit_time, settings.backbone, form)
    if settings.kind == 'cfc':
        wired = MixedWiredCfcCore if settings.mixed_memory else WiredCfcCore
        return wired(inputs, build_wiring(settings, inputs), unit_time, form)
    if settings.kind == 'ltc':
        return LtcCore(inputs, build_wiring(settings, inputs), unit_time, settings.substep_count)
    if settings.kind == 'ode':
        circuit = build_wiring(settings, inputs) if settings.wiring == 'ncp' else None
        return OdeCore(inputs, units, unit_time, settings.substep_count, settings.solver,
                       settings.adjoint, settings.tolerance, circuit)
    if settings.kind == 'scan':
        return ScanCore(inputs, units, unit_time, settings.layers)
    return {'lstm': LstmCore, 'gru': GruCore}[settings.kind](inputs, units, unit_time)
