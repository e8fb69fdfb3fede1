"""
Learning while the robot works: windows from topics in, promoted checkpoints out.

`session.OnlineSession` puts the parts together; the node and the benchmark both drive it. Torch is
imported by `learner`, `consolidation` and `session` only.
"""

from liquid_trainer.online.collector import WindowCollector
from liquid_trainer.online.window import Window

__all__ = ['Window', 'WindowCollector']
