"""Import the packages before pytest meets the folders that share their names."""

# With --import-mode=importlib pytest would call liquid_policy_node/test/test_x.py
# 'liquid_policy_node.test.test_x' and make a module 'liquid_policy_node' of the outer folder,
# which hides the package inside it. A package that is already imported stays.
from hypothesis import settings

import liquid_policy_node  # noqa: F401
import liquid_policy_sim  # noqa: F401
import liquid_trainer_node  # noqa: F401

# The same examples every time: what a run finds is found again, and by everybody.
settings.register_profile('fixed', derandomize=True, deadline=None)
settings.load_profile('fixed')
