"""Benchmarks behind ``udpm bench``."""
