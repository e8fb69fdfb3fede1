"""Tasks of the literature with their demonstrations, each behind the same few functions."""
