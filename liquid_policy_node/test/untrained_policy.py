"""A checkpoint for tests: right in every part, only never trained."""

from pathlib import Path

import torch

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.export import to_checkpoint
from liquid_policy.interface import load_interface
from liquid_policy.policy import Policy
from liquid_policy.settings import EncoderSettings, PolicySettings

INTERFACE = Path(__file__).resolve().parents[1] / 'config' / 'manipulator.interface.yaml'


def untrained_checkpoint() -> Checkpoint:
    """Export an untrained policy of the manipulator; takes seconds, so do it once."""
    torch.manual_seed(0)
    # The narrowest encoder: loads fast, and says as little about images as any untrained one.
    policy = Policy(PolicySettings(encoder=EncoderSettings(width=0.1))).eval()
    return to_checkpoint(policy, load_interface(INTERFACE), 'untrained', {'trained': False})
