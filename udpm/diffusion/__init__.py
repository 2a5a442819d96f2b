"""The diffusion process of the paper: schedule, operator H, forward marginal, posterior, sampling chain.

Sides, levels and symbols follow the paper: level 0 is the image in [-1, 1], level l has side N/2^l.
"""
