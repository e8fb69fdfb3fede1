"""Perception, policy and safety nodes around the library liquid_policy."""
