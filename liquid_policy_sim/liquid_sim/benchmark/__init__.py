"""Policies against each other: same data, inputs and budget, counted in fresh episodes."""
