"""The filter against dynamics that are not its own: MuJoCo's arm driven at its joint limits."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('xacro')

from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter
from liquid_policy.interface import load_interface
from liquid_policy.limits import load_limits
from liquid_sim.conveyor import ConveyorSim

PACKAGE = Path(__file__).resolve().parents[1] / 'liquid_policy_node'
AGE = 0.005  # s, of the joint states when they are used


@pytest.mark.parametrize(('joint', 'direction'), [
    ('shoulder_pan_joint', 1), ('shoulder_pan_joint', -1), ('wrist_3_joint', 1)])
def test_a_joint_driven_outwards_stops_at_its_margin(joint, direction):
    """Full speed towards the limit: never past it, and most of the range is used."""
    interface = load_interface(PACKAGE / 'config' / 'manipulator.interface.yaml')
    limits = load_limits(interface, PACKAGE / 'urdf' / 'manipulator.urdf.xacro')
    settings = FilterSettings()
    safety, entry = SafetyFilter(limits, settings), limits.names.index(joint)
    limit = (limits.upper if direction > 0 else -limits.lower)[entry]
    arm = np.flatnonzero(limits.joint)
    proposal = np.zeros(len(limits.names))
    proposal[entry] = 1e6 * direction
    sim = ConveyorSim(seed=1)
    try:
        sim.reset(1)
        gaps = []
        for _ in range(900):
            _, position, velocity, _ = sim.joint_state()
            known = np.full((2, len(limits.names)), np.nan)
            known[0, arm], known[1, arm] = position[:len(arm)], velocity[:len(arm)]
            feedback = JointFeedback(known[0], known[1], np.full(len(limits.names), np.nan), AGE)
            sim.step(safety.filter(proposal, feedback, 0.01).command)
            gaps.append(limit - direction * known[0, entry])
    finally:
        sim.close()
    # The margin is 10 mrad; noise of the encoders is 0.1 mrad, so 1 mrad is ten times that.
    assert min(gaps) > settings.position_margin - 1e-3
    assert gaps[-1] < settings.position_margin + 5e-3
