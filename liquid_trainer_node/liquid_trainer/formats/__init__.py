"""Demonstrations in the formats of other projects, to and from bags and arrays."""
