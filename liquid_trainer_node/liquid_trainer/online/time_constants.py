"""Time constants brought back into the range in which they matter."""

from __future__ import annotations

import math

import torch

from liquid_policy.cores import Core, OdeCore

# Shortest and longest time constant [s]. `OdeCore` clamps its own there on the way through, where
# a weight beyond the edge has no gradient and would never come back.
RANGE = (0.01, 1.0)


@torch.no_grad()
def clamp_time_constants(core: Core) -> None:
    """
    Clamp what a core learns as time constants, in place.

    `ode` learns log tau; closed-form cells of form `pure` learn rates 1 / tau. Gated cells have
    none to clamp: their gates lie between 0 and 1 whatever the weights are.
    """
    low, high = RANGE
    if isinstance(core, OdeCore):
        core.log_tau.clamp_(math.log(low), math.log(high))
    for module in core.modules():
        rate = getattr(module, 'rate', None)
        if isinstance(rate, torch.nn.Parameter):    # of a `pure` cell, per `unit_time`
            sign = torch.where(rate < 0, -1.0, 1.0)
            rate.copy_(sign * rate.abs().clamp(core.unit_time / high, core.unit_time / low))
