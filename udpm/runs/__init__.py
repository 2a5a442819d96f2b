"""A run's folder: its paths, lock, records, attempts and state. Imports no torch."""
