"""Perception, policy and safety nodes around the library liquid_policy."""

import os

# Before numpy is imported: its products are small here, and threads would take the cores that
# other nodes need.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
