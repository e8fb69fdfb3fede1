"""Recurrent cores: continuous-time cells that integrate over the time that truly passed."""

from liquid_policy.cores.build import build_core, build_wiring
from liquid_policy.cores.cfc import CfcCore, MixedCfcCore, MixedWiredCfcCore, WiredCfcCore
from liquid_policy.cores.ltc import LtcCore
from liquid_policy.cores.ode import OdeCore
from liquid_policy.cores.protocol import Core, check_elapsed
from liquid_policy.cores.recurrent import GruCore, LstmCore
from liquid_policy.cores.scan import ScanCore, linear_scan
from liquid_policy.cores.wirings import Wiring, circuit_wiring, dense_wiring

__all__ = [
    'CfcCore', 'Core', 'GruCore', 'LstmCore', 'LtcCore', 'MixedCfcCore', 'MixedWiredCfcCore',
    'OdeCore', 'ScanCore', 'WiredCfcCore', 'Wiring', 'build_core', 'build_wiring',
    'check_elapsed', 'circuit_wiring', 'dense_wiring', 'linear_scan',
]
