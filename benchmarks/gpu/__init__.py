"""Checks and measurements for a machine with one GPU, 8 minutes in all."""
