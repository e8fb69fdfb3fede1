"""The mixture head by its first address; it lives with the other heads."""

from liquid_policy.heads.mixture import EstimateHead, Mixture, MixtureHead

__all__ = ['EstimateHead', 'Mixture', 'MixtureHead']
