"""Heads: what turns a core's output into a distribution over action chunks."""
