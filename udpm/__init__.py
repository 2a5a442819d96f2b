"""Upsampling Diffusion Probabilistic Models: train, sample, score and report."""

__version__ = "0.1.0"
