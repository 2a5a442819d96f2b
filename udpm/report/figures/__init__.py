"""Figures, each with the csv of its data."""
