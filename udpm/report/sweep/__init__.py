"""Sweeps: plan, ranking, figures."""
