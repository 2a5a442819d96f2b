"""Sampling: the n-th image of a sample set is a function of (weights, seed, n) alone."""
