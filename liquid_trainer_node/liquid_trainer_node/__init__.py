"""Trainer and recorder nodes around the library liquid_trainer."""
